#!/usr/bin/env python3
"""What fewer bits a weight buy: packing, tokens from disk with nothing resident, tokens from memory.

usage: benches/quantised.py [--runs N] [--json FILE]     (needs 6 GB of disk under target/, and a quiet machine)

The model is `narrows synth llama-1.1b` and its packs in q8 and nf4, the head too. From disk each runs in the smallest
budget that its plan names; bf16, q8 and nf4 take turns, since the speed of a disk moves. Bounds: bytes per pass from
disk, the speed of reading memory (`narrows bench host`) in memory.
"""
import argparse, array, datetime, json, os, platform, shutil, statistics, struct, subprocess, tempfile, time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
EXE, FOLDER = os.path.join(ROOT, 'target/release/narrows'), os.path.join(ROOT, 'target/bench')
SOURCE = os.path.join(FOLDER, 'llama-1.1b')
parser = argparse.ArgumentParser(); parser.add_argument('--runs', type=int, default=5); parser.add_argument('--json')
args = parser.parse_args()

def output(*command): return subprocess.run([EXE, *map(str, command)], check=True, capture_output=True, text=True).stdout

def run(model, tokens, *flags):
    """Statistics of a run."""
    with tempfile.NamedTemporaryFile(suffix='.safetensors') as ids:
        raw = array.array('q', range(5, 13)).tobytes()
        header = json.dumps({'input_ids': {'dtype': 'I64', 'shape': [1, 8], 'data_offsets': [0, len(raw)]}}).encode()
        ids.write(struct.pack('<Q', len(header)) + header + raw); ids.flush()
        return json.loads(output('run', model, '--ids', ids.name, '-n', tokens, '--greedy', '--ignore-eos', '--json', '--quiet', '--device', 'cpu', '--speeds', 'assumed', *flags))['stats']

def plan(model, *flags): return json.loads(output('plan', model, '--json', '--device', 'cpu', '--speeds', 'assumed', '--ctx', 64, *flags))

subprocess.run(['cargo', 'build', '--release', '-q', '-p', 'narrows-cli'], check=True, cwd=ROOT)
if not os.path.exists(SOURCE + '/config.json'): output('synth', 'llama-1.1b', '-o', SOURCE)
size = os.path.getsize(SOURCE + '/model.safetensors')
models, packing = {'bf16': SOURCE}, {}
for quant in ('q8', 'nf4'):
    models[quant], seconds = f'{SOURCE}-{quant}', []
    for _ in range(3):
        shutil.rmtree(models[quant], ignore_errors=True); os.sync(); start = time.time()
        output('pack', SOURCE, '-o', models[quant], '--quant', quant, '--quant-head', quant, '--quiet'); seconds.append(time.time() - start)
    packing[quant] = size / statistics.median(seconds)

budget = {name: -(-plan(model, '--ram', '400M')['minimum_bytes'] // 2**20) for name, model in models.items()}
rounds = [{name: run(model, {'bf16': 4, 'q8': 7, 'nf4': 12}[name], '--ram', f'{budget[name]}M') for name, model in models.items()} for _ in range(args.runs)]
memory = [{name: run(model, 24) for name, model in models.items()} for _ in range(args.runs)]
host = json.loads(output('bench', 'host', '--test', 'read', '--pages', 'huge', '--json'))
read = max(result['bytes_per_second'] for result in host['results'])
rows = []
for name, model in models.items():
    per_pass = plan(model, '--ram', '4G')['bytes_per_pass']
    median = lambda runs, f: statistics.median(f(r) for r in runs)
    rows.append({
        'encoding': name, 'bytes_per_pass': per_pass, 'minimum_mib': budget[name],
        'packing_bytes_per_second': packing.get(name),
        'seconds_per_token_from_disk': median(rounds, lambda r: r[name]['seconds_per_token']),
        'times_bf16_from_disk': median(rounds, lambda r: r['bf16']['seconds_per_token'] / r[name]['seconds_per_token']),
        'bound_times_bf16': plan(models['bf16'], '--ram', '4G')['bytes_per_pass'] / per_pass,
        'disk_bytes_per_second': median(rounds, lambda r: r[name]['disk']['bytes_per_second']),
        'seconds_per_token_in_memory': median(memory, lambda r: r[name]['seconds_per_token']),
        'bytes_per_second_in_memory': median(memory, lambda r: r[name]['compute']['bytes'] / r[name]['compute']['busy_seconds']),
        'share_of_memory_read': median(memory, lambda r: r[name]['compute']['bytes'] / r[name]['compute']['busy_seconds']) / read,
    })
record = {'date': datetime.date.today().isoformat(), 'cpu': platform.processor() or platform.machine(), 'load': os.getloadavg(), 'runs': args.runs, 'rows': rows, 'host': host}
for row in rows:
    print(' '.join(f'{key}={value:.4g}' if isinstance(value, float) else f'{key}={value}' for key, value in row.items()))
print('load', record['load'])
if args.json: json.dump(record, open(args.json, 'w'), indent=1)
