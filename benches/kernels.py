#!/usr/bin/env python3
"""What share of reading memory a matrix-vector product gets, where neighbours change what memory delivers.

usage: benches/kernels.py [-r N] [--shape NAME] [--threads N] [--exe FILE] [--json FILE]     (needs 1 GB of memory)

Each round is a `narrows bench kernels` of one encoding, which reads memory for a moment and then runs every product once:
what is told are medians of the rounds' own shares. Within a second the two see about the same machine, within a minute not.
"""
import argparse, datetime, json, os, platform, statistics, subprocess

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
parser = argparse.ArgumentParser(); parser.add_argument('-r', type=int, default=20, help='rounds'); parser.add_argument('--shape', default='llama-70b'); parser.add_argument('--threads')
parser.add_argument('--exe', help='a program that was built before'); parser.add_argument('--json'); args = parser.parse_args()
if not args.exe: subprocess.run(['cargo', 'build', '--release', '-q', '-p', 'narrows-cli'], check=True, cwd=ROOT)
EXE = args.exe or os.path.join(ROOT, 'target/release/narrows')

rows, memory = {}, []
for _ in range(args.r):
    for encoding in ('bf16', 'q8', 'nf4'):
        report = json.loads(subprocess.run([EXE, 'bench', 'kernels', '--op', 'linear', '--encoding', encoding, '--rows', '1', '--shape', args.shape, '--loops', '1', '--json', '--quiet',
                                            *(['--threads', args.threads] if args.threads else [])], check=True, capture_output=True, text=True).stdout)
        for r in report['results']:
            if r['bench'] == 'host': memory.append(r['bytes_per_second'])
            if r['bench'] == 'kernel': rows.setdefault((encoding, tuple(r['shape'])), []).append((r['bytes_per_second'], r['bytes_per_second'] / r['roof_bytes_per_second']))

def spread(values, scale, digits, unit=''):
    """The median, and the middle half."""
    low, middle, high = (f'{value * scale:.{digits}f}' for value in (statistics.quantiles(values, n=4) if len(values) > 1 else values * 3))
    return middle + unit, f'{low} - {high}'

machine = report['machine']
print(f"{machine['cpu']}, {args.threads or machine['threads']} threads, {machine['isa']}, Linux {platform.release()}, {datetime.date.today()}, load {machine['load']:.1f}; medians of {args.r} rounds and their quarters")
print(f"reading memory: {', '.join(spread(memory, 1e-9, 1, ' GB/s'))}\n")
print('| encoding | shape | GB/s | from - to | of reading memory | from - to |\n|---|---|---|---|---|---|')
for (encoding, shape), got in rows.items():
    print('| ' + ' | '.join([encoding, ' x '.join(map(str, shape)), *spread([g for g, _ in got], 1e-9, 1), *spread([share for _, share in got], 100, 0, ' %')]) + ' |')
if args.json: json.dump({'machine': machine, 'memory': memory, 'rows': [{'encoding': e, 'shape': s, 'bytes_per_second': [g for g, _ in got], 'of_memory': [x for _, x in got]} for (e, s), got in rows.items()]}, open(args.json, 'w'), indent=1)
