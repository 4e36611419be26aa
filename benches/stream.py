#!/usr/bin/env python3
"""Streaming beside its bounds: narrows and fio in turn on the same file, at several budgets.

usage: benches/stream.py [--runs N] [--json FILE]     (needs fio, 3 GB of disk under target/, and a quiet machine)

The model is `narrows synth llama-1.1b`: 22 layers, bf16, 2.2 GB, of which a pass walks 2.07 GB. fio reads the same
file with O_DIRECT and io_uring, at the block size and depth that are best here, into huge pages (in small ones it reads
half as fast on some machines, and so would we).
"""
import argparse, array, datetime, json, os, platform, statistics, struct, subprocess, tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
EXE, MODEL = os.path.join(ROOT, 'target/release/narrows'), os.path.join(ROOT, 'target/bench/llama-1.1b')
parser = argparse.ArgumentParser(); parser.add_argument('--runs', type=int, default=5); parser.add_argument('--json')
args = parser.parse_args()

def fio(bs, depth, file, seconds=2):
    """Bytes per second."""
    out = subprocess.run(['fio', '--name=read', f'--filename={file}', '--rw=read', '--direct=1', '--ioengine=io_uring', f'--bs={bs}', f'--iodepth={depth}',
                          f'--runtime={seconds}', '--time_based', '--output-format=json'], check=True, capture_output=True, text=True,
                         env={**os.environ, 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}).stdout
    return json.loads(out[out.index('{'):])['jobs'][0]['read']['bw_bytes']

def narrows(ram, tokens):
    """Statistics of a run, and its peak resident memory as the kernel accounts it."""
    with tempfile.NamedTemporaryFile(suffix='.safetensors') as ids:
        raw = array.array('q', range(5, 13)).tobytes()
        header = json.dumps({'input_ids': {'dtype': 'I64', 'shape': [1, 8], 'data_offsets': [0, len(raw)]}}).encode()
        ids.write(struct.pack('<Q', len(header)) + header + raw); ids.flush()
        p = subprocess.Popen([EXE, 'run', MODEL, '--ids', ids.name, '-n', str(tokens), '--greedy', '--ignore-eos', '--json', '--quiet', '--ram', ram], stdout=subprocess.PIPE)
        out = p.stdout.read(); _, status, usage = os.wait4(p.pid, 0); assert status == 0
    return {**json.loads(out)['stats'], 'rss': usage.ru_maxrss * 1024}

subprocess.run(['cargo', 'build', '--release', '-q', '-p', 'narrows-cli'], check=True, cwd=ROOT)
if not os.path.exists(MODEL + '/config.json'): subprocess.run([EXE, 'synth', 'llama-1.1b', '-o', MODEL], check=True)
file = MODEL + '/model.safetensors'
fd = os.open(file, os.O_RDONLY); os.fsync(fd); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.close(fd)
narrows('600M', 2)  # both find the disk in the same state afterwards
best = max(((fio(bs, depth, file, 1), bs, depth) for bs in ('1M', '2M', '4M', '8M') for depth in (8, 16, 32)))
_, bs, depth = best

rows = []
for ram, tokens in (('600M', 8), ('1600M', 12), ('4G', 24)):
    runs = [(fio(bs, depth, file), narrows(ram, tokens)) for _ in range(args.runs)]
    median = lambda f: statistics.median(f(*r) for r in runs)
    plan = json.loads(subprocess.run([EXE, 'plan', MODEL, '--ram', ram, '--ctx', str(8 + tokens), '--json'], check=True, capture_output=True, text=True).stdout)
    per_pass = plan['disk_bytes_per_pass']
    # Bytes that reading ahead may have done beyond the last pass: what fits into the slots.
    streamed = per_pass > 1 << 20
    rows.append({
        'ram': ram, 'tokens': tokens, 'runs': args.runs,
        'fio_bytes_per_second': median(lambda f, n: f), 'disk_bytes_per_second': median(lambda f, n: n['disk']['bytes_per_second']),
        'disk_share_of_fio': median(lambda f, n: n['disk']['bytes_per_second'] / f) if streamed else None,
        'disk_bytes_per_pass': per_pass, 'seconds_per_token': median(lambda f, n: n['seconds_per_token']),
        'bound_seconds_per_token': median(lambda f, n: per_pass / f) if streamed else None,
        'over_bound': median(lambda f, n: n['seconds_per_token'] / (per_pass / f)) if streamed else None,
        'predicted_over_measured': median(lambda f, n: n['predicted_seconds_per_token'] / n['seconds_per_token']),
        'compute_bytes_per_second': median(lambda f, n: n['compute']['bytes'] / n['compute']['busy_seconds']),
        'rss_bytes': max(n['rss'] for _, n in runs), 'host_bytes': max(n['peak_host_bytes'] for _, n in runs),
    })

cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.processor())
machine = {'cpu': cpu, 'cpus': os.cpu_count(), 'kernel': platform.release(), 'date': datetime.date.today().isoformat(), 'fio': f'bs={bs} iodepth={depth}', 'load': os.getloadavg()[0]}
print(f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, {machine['date']}; fio {machine['fio']}; load {machine['load']:.1f}; medians of {args.runs}\n")
print('| `--ram` | s/token | bound by fio | of fio | disk GB/s | read per pass | predicted / measured | peak resident |\n|---|---|---|---|---|---|---|---|')
show = lambda x, f: '-' if x is None else format(x, f)
for r in rows:
    print(f"| {r['ram']} | {r['seconds_per_token']:.3f} | {show(r['bound_seconds_per_token'], '.3f')} | {show(r['disk_share_of_fio'], '.0%')} | {r['disk_bytes_per_second'] / 1e9:.2f} | {r['disk_bytes_per_pass'] / 1e6:.0f} MB | {r['predicted_over_measured']:.2f} | {r['rss_bytes'] / 2**20:.0f} MiB |")
if args.json: json.dump({'machine': machine, 'rows': rows}, open(args.json, 'w'), indent=1)
