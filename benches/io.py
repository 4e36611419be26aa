#!/usr/bin/env python3
"""`narrows bench io` beside fio: the same file, the same settings, in turn.

usage: benches/io.py [--runs N] [--seconds S] [--exe FILE] [--json FILE]     (needs fio, 1 GB of disk under target/, and a quiet machine)

Both get buffers in huge pages and have them registered; fio's come from a pool that has to be there: `sysctl vm.nr_hugepages=160`.
(By its own malloc they would be small pages, and fio half as fast at some settings.) What narrows does with a thread for each block in flight, fio
does with as many jobs (psync), and blocks are read at random then: jobs would each walk the file from its start.
"""
import argparse, json, os, platform, statistics, subprocess

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
parser = argparse.ArgumentParser(); parser.add_argument('--runs', type=int, default=5); parser.add_argument('--seconds', type=float, default=1)
parser.add_argument('--exe'); parser.add_argument('--json'); args = parser.parse_args()
EXE, FILE = args.exe or os.path.join(ROOT, 'target/release/narrows'), os.path.join(ROOT, 'target/bench/io.bin')
if not args.exe: subprocess.run(['cargo', 'build', '--release', '-q', '-p', 'narrows-cli'], check=True, cwd=ROOT)

if int(open('/proc/sys/vm/nr_hugepages').read()) < 160: raise SystemExit('fio needs huge pages: sysctl vm.nr_hugepages=160')
os.makedirs(os.path.dirname(FILE), exist_ok=True)
if not os.path.exists(FILE) or os.path.getsize(FILE) != 1 << 30:
    with open(FILE, 'wb') as f:
        for _ in range(1024): f.write(os.urandom(1 << 20))
        f.flush(); os.fsync(f.fileno())

def fio(engine, rw, cache, bs, depth):
    """Bytes per second."""
    how = {'io_uring': ['--ioengine=io_uring', '--direct=1', '--fixedbufs=1', f'--iodepth={depth}'],
           'threads': ['--ioengine=psync', '--direct=1', '--thread', f'--numjobs={depth}', '--group_reporting'],
           'buffered': ['--ioengine=psync', '--direct=0', '--thread', f'--numjobs={depth}', '--group_reporting', f'--invalidate={int(cache == "cold")}'],
          }[engine]
    if cache == 'warm':
        with open(FILE, 'rb') as f:
            while f.read(1 << 22): pass
    out = subprocess.run(['fio', '--name=read', f'--filename={FILE}', f'--rw={rw}', f'--bs={bs}', '--time_based', f'--runtime={args.seconds}', '--ramp_time=200ms', '--norandommap',
                          '--iomem=mmaphuge', '--output-format=json', *how], check=True, capture_output=True, text=True).stdout
    return json.loads(out[out.index('{'):])['jobs'][0]['read']['bw_bytes']

def narrows(engine, rw, cache, bs, depth):
    out = subprocess.run([EXE, 'bench', 'io', FILE, '--ioengine', engine, '--rw', rw, '--cache', 'warm' if cache == 'warm' else 'cold', '--bs', bs, '--iodepth', str(depth), '--loops', '1',
                          '--runtime', str(args.seconds), '--ramp_time', '200ms', '--json', '--quiet'], check=True, capture_output=True, text=True).stdout
    return json.loads(out)['results'][0]['bytes_per_second']

# Cold reads through the page cache are not compared: fio leaves its pages there, narrows takes each tile out again.
CASES = [('io_uring', 'read', 'bypassed', bs, depth) for bs, depth in (('128K', 8), ('128K', 32), ('512K', 1), ('512K', 8), ('512K', 32), ('4M', 8))] + [
    ('io_uring', 'randread', 'bypassed', '512K', 32), ('threads', 'randread', 'bypassed', '512K', 8), ('buffered', 'randread', 'warm', '128K', 2), ('buffered', 'randread', 'warm', '1M', 2)]
pairs = {case: [] for case in CASES}
for run in range(args.runs):
    for case in CASES:
        # Who goes first has the disk in another state than who goes second.
        both = [fio, narrows] if run % 2 == 0 else [narrows, fio]
        got = {which.__name__: which(*case) for which in both}
        pairs[case].append((got['fio'], got['narrows']))

rows = [{'ioengine': e, 'rw': rw, 'cache': c, 'bs': bs, 'iodepth': d, 'fio': statistics.median(f for f, _ in got), 'narrows': statistics.median(n for _, n in got),
         'ratio': statistics.median(n / f for f, n in got), 'ratios': [n / f for f, n in got]} for (e, rw, c, bs, d), got in pairs.items()]
version = subprocess.run(['fio', '--version'], capture_output=True, text=True).stdout.strip()
print(f'{version}, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}; medians of {args.runs} pairs of {args.seconds} s\n')
print('| ioengine | rw | cache | bs | iodepth | fio GB/s | narrows GB/s | narrows / fio |\n|---|---|---|---|---|---|---|---|')
for r in rows: print(f"| {r['ioengine']} | {r['rw']} | {r['cache']} | {r['bs']} | {r['iodepth']} | {r['fio'] / 1e9:.2f} | {r['narrows'] / 1e9:.2f} | {r['ratio']:.2f} |")
if args.json: json.dump({'fio': version, 'rows': rows}, open(args.json, 'w'), indent=1)
