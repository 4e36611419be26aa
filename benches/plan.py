#!/usr/bin/env python3
"""Whether the plan is true: predicted beside measured over budgets, encodings and contexts.

usage: benches/plan.py [-r N] [-n N] [--exe FILE] [--json FILE]     (needs 5 GB of disk under target/, and a quiet machine)

The model is `narrows synth llama-1.1b`: bf16, and packs of it in q8 and nf4, whose heads are quantised too, and one in
nf4 whose head is not. Each row is `narrows bench run`: the plan's prediction is made seconds before what it predicts.
"""
import argparse, datetime, json, os, platform, subprocess

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
parser = argparse.ArgumentParser()
parser.add_argument('-r', type=int, default=3); parser.add_argument('-n', type=int, default=12); parser.add_argument('--depth', default='1536', help='positions before what is measured, where all weights stay')
parser.add_argument('--exe', help='a program that was built before'); parser.add_argument('--json')
args = parser.parse_args()
if not args.exe: subprocess.run(['cargo', 'build', '--release', '-q', '-p', 'narrows-cli'], check=True, cwd=ROOT)
EXE, DIR = args.exe or os.path.join(ROOT, 'target/release/narrows'), os.path.join(ROOT, 'target/bench')
run = lambda *flags: subprocess.run([EXE, *flags], check=True, capture_output=True, text=True).stdout

source = DIR + '/llama-1.1b'
if not os.path.exists(source + '/config.json'): run('synth', 'llama-1.1b', '-o', source)
packs = {'q8': ['--quant', 'q8'], 'nf4': ['--quant', 'nf4'], 'nf4, head bf16': ['--quant', 'nf4', '--quant-head', 'none']}
models = {'bf16': source}
for name, flags in packs.items():
    models[name] = DIR + '/llama-1.1b-' + name.replace(', ', '-').replace(' ', '-')
    if not os.path.exists(models[name] + '/narrows.json'): run('pack', source, '-o', models[name], *flags)

rows = []
print('| encoding | `--ram` | test | predicted s/token | measured s/token | from - to | predicted / measured | load |\n|---|---|---|---|---|---|---|---|')
def show(r):
    low, high = min(r['samples_seconds_per_token']), max(r['samples_seconds_per_token'])
    print(f"| {r['encoding']} | {r['ram_mib']}M | {r['test']} | {r['predicted_seconds_per_token']:.4f} | {r['measured_seconds_per_token']:.4f} | {low:.4f} - {high:.4f} "
          f"| {r['predicted_over_measured']:.2f} | {r['load']:.1f} |", flush=True)

for name, model in models.items():
    # A quarter of the weights, three quarters, and more than all of them.
    size = json.loads(run('plan', model, '--speeds', 'assumed', '--device', 'cpu', '--json'))['bytes_per_pass'] >> 20
    budgets = [f'{mib}M' for mib in (size // 4 + 150, size * 3 // 4 + 150, size + 600)]
    bench = lambda ram, depth: json.loads(run('bench', 'run', model, '-p', '0', '-n', str(args.n), '-d', depth, '-r', str(args.r), '--ram', ram,
                                              '--device', 'cpu', '--json', '--quiet'))['results']
    # What attention reads is seen where the disk hides nothing.
    for r in bench(','.join(budgets), '0') + bench(budgets[-1], args.depth):
        rows.append({'encoding': name, 'ram_mib': r['budget_bytes'] >> 20, 'test': r['test'], 'predicted_seconds_per_token': 1 / r['predicted_ts'],
                     'measured_seconds_per_token': r['avg_ns'] / 1e9 / r['n_gen'], 'samples_seconds_per_token': [ns / 1e9 / r['n_gen'] for ns in r['samples_ns']],
                     'predicted_over_measured': r['n_gen'] * 1e9 / (r['predicted_ts'] * r['avg_ns']),
                     'bound': r['bound'], 'bytes_disk_per_pass': r['bytes_disk'] / r['passes'], 'stall_compute': r['stall_compute'], 'load': os.getloadavg()[0]})
        show(rows[-1])

cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.processor())
machine = {'cpu': cpu, 'cpus': os.cpu_count(), 'kernel': platform.release(), 'date': datetime.date.today().isoformat(), 'load': os.getloadavg()[0]}
print(f"\n{cpu}, {machine['cpus']} CPUs, Linux {machine['kernel']}, {machine['date']}; load {machine['load']:.1f}; means of {args.r} runs of {args.n} tokens")
within = sum(abs(r['predicted_over_measured'] - 1) <= 0.1 for r in rows)
print(f"within 10 %: {within} of {len(rows)}")
if args.json: json.dump({'machine': machine, 'rows': rows}, open(args.json, 'w'), indent=1)
