#!/usr/bin/env python3
"""Whether the plan is true: predicted beside measured over budgets, encodings and contexts.

usage: benches/plan.py [-r N] [-n N] [--exe FILE] [--json FILE]     (needs 5 GB of disk under target/, and a quiet machine)

The model is `narrows synth llama-1.1b`: bf16, and packs of it in q8 and nf4, whose heads are quantised too, and one in
nf4 whose head is not. In each round each row is a `narrows bench run` of its own, which plans seconds before it runs;
what is told of a row are medians of the rounds, since disks and neighbours change within minutes.
"""
import argparse, datetime, json, os, platform, statistics, subprocess

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
parser = argparse.ArgumentParser()
parser.add_argument('-r', type=int, default=5, help='rounds'); parser.add_argument('-n', type=int, default=12); parser.add_argument('--depth', default='1536', help='positions before what is measured, where all weights stay')
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
for name, model in models.items():
    # A quarter of the weights, three quarters, and more than all of them. What attention reads is seen where the disk hides nothing.
    size = json.loads(run('plan', model, '--speeds', 'assumed', '--device', 'cpu', '--json'))['bytes_per_pass'] >> 20
    few, many, all = (f'{mib}M' for mib in (size // 4 + 150, size * 3 // 4 + 150, size + 600))
    # More tokens where they are faster: processors take half a second to come to their speed.
    rows += [{'encoding': name, 'model': model, 'ram': ram, 'depth': depth, 'n': args.n * times, 'rounds': []}
             for ram, depth, times in ((few, '0', 1), (many, '0', 3), (all, '0', 6), (all, args.depth, 6))]
for _ in range(args.r):
    for row in rows:
        r = json.loads(run('bench', 'run', row['model'], '-p', '0', '-n', str(row['n']), '-d', row['depth'], '-r', '1', '--ram', row['ram'], '--device', 'cpu', '--json', '--quiet'))['results'][0]
        predicted, measured = 1 / r['predicted_ts'], r['avg_ns'] / 1e9 / r['n_gen']
        row['rounds'].append({'predicted_seconds_per_token': predicted, 'measured_seconds_per_token': measured, 'predicted_over_measured': predicted / measured, 'load': os.getloadavg()[0]})
        row.update(test=r['test'], bound=r['bound'], bytes_disk_per_pass=r['bytes_disk'] / r['passes'])

print('| encoding | `--ram` | test | bound | predicted s/token | measured s/token | from - to | predicted / measured | from - to |\n|---|---|---|---|---|---|---|---|---|')
for row in rows:
    del row['model']
    for key in ('predicted_seconds_per_token', 'measured_seconds_per_token', 'predicted_over_measured'): row[key] = statistics.median(r[key] for r in row['rounds'])
    ratios, seconds = ([r[key] for r in row['rounds']] for key in ('predicted_over_measured', 'measured_seconds_per_token'))
    print(f"| {row['encoding']} | {row['ram']} | {row['test']} | {row['bound']} | {row['predicted_seconds_per_token']:.4f} | {row['measured_seconds_per_token']:.4f} | {min(seconds):.4f} - {max(seconds):.4f} "
          f"| {row['predicted_over_measured']:.2f} | {min(ratios):.2f} - {max(ratios):.2f} |")

cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.processor())
machine = {'cpu': cpu, 'cpus': os.cpu_count(), 'kernel': platform.release(), 'date': datetime.date.today().isoformat(), 'load': os.getloadavg()[0]}
print(f"\n{cpu}, {machine['cpus']} CPUs, Linux {machine['kernel']}, {machine['date']}; load {machine['load']:.1f}; medians of {args.r} rounds of {args.n} to {6 * args.n} tokens")
within = sum(abs(r['predicted_over_measured'] - 1) <= 0.1 for r in rows)
print(f"within 10 %: {within} of {len(rows)}")
if args.json: json.dump({'machine': machine, 'rows': rows}, open(args.json, 'w'), indent=1)
