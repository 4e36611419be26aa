#!/usr/bin/env python3
"""Compares narrows with AirLLM and llama.cpp: one model, one machine, one limit on memory.

    tools/compare/run.py --model DIR --narrows target/release/narrows --memory 1600M --tokens 16 --work DIR --json OUT

Every program runs twice in a memory cgroup of its own (page cache is charged to it, swap is off): cold, with nothing of the
weights in the page cache, then warm, with what the first run left there. What is timed is decode: the passes after the first
new token, so neither start, load nor prefill. A program that fails or is missing is a row that says why.

Only the standard library is needed here; README.md says what the peers need. Run it as root.
"""
import argparse, datetime, glob, json, os, re, shutil, signal, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from common import write_ids

MIB = 1 << 20


class Failed(Exception):
    """Why a row has no figures."""


def size(text):
    number, unit = re.fullmatch(r'(\d+)([KMG]?)', text).groups()
    return int(number) << {'': 0, 'K': 10, 'M': 20, 'G': 30}[unit]


def read(path):
    with open(path) as f:
        return f.read()


def write(path, text):
    with open(path, 'w') as f:
        f.write(text)


# ---- the cgroup ---------------------------------------------------------------------------------------------------------

class Cgroup:
    """A cgroup with a limit on memory and no swap: v2, v1, or a systemd scope where the hierarchy belongs to systemd."""

    def __init__(self, name, limit):
        self.limit, self.holder, self.path = limit, None, None
        why = []
        for make in (self._v2, self._v1, self._systemd):
            try:
                make(f'narrows-compare-{os.getpid()}-{name}')
                return
            except (OSError, Failed, StopIteration) as e:
                why.append(f'{make.__name__[1:]}: {e if str(e) else "not mounted"}')
                self.close()
        raise SystemExit('no memory cgroup can be made here (' + '; '.join(why) + '); run this as root on a host, not in a container without cgroups')

    @staticmethod
    def own(controller):
        return next(line.split(':', 2)[2] for line in read('/proc/self/cgroup').splitlines() if line.split(':')[1] == controller)

    def _v2(self, name):
        own = self.own('')  # beside this process: a cgroup with processes may have no children that are limited
        parent = '/sys/fs/cgroup' + (os.path.dirname(own) if own != '/' else '/').rstrip('/')
        if 'memory' not in read(parent + '/cgroup.controllers').split():
            raise Failed('the memory controller is not in ' + parent)
        if 'memory' not in read(parent + '/cgroup.subtree_control').split():
            write(parent + '/cgroup.subtree_control', '+memory')
        self._make(2, parent + '/' + name)
        self._limit_v2()

    def _limit_v2(self):
        write(self.path + '/memory.max', str(self.limit))
        if os.path.exists(self.path + '/memory.swap.max'):
            write(self.path + '/memory.swap.max', '0')

    def _v1(self, name):
        self._make(1, '/sys/fs/cgroup/memory' + self.own('memory').rstrip('/') + '/' + name)
        write(self.path + '/memory.limit_in_bytes', str(self.limit))
        if os.path.exists(self.path + '/memory.memsw.limit_in_bytes'):
            write(self.path + '/memory.memsw.limit_in_bytes', str(self.limit))
        write(self.path + '/memory.swappiness', '0')

    def _systemd(self, name):
        if not shutil.which('systemd-run'):
            raise Failed('no systemd-run')
        # A process that only holds the scope: both runs of a program must be in one cgroup, or the page cache of the first
        # would be charged to nobody in the second.
        self.holder = subprocess.Popen(['systemd-run', '--scope', '-q', '--unit', name, '-p', f'MemoryMax={self.limit}', '-p', 'MemorySwapMax=0',
                                        'sleep', 'infinity'], stderr=subprocess.PIPE, text=True)
        for _ in range(50):
            time.sleep(0.1)
            if self.holder.poll() is not None:
                raise Failed(self.holder.stderr.read().strip().splitlines()[0])
            path = '/sys/fs/cgroup' + read(f'/proc/{self.holder.pid}/cgroup').strip().split(':', 2)[2]
            if name in path:
                self.version, self.path = 2, path
                return self._limit_v2()
        raise Failed('the scope did not start')

    def _make(self, version, path):
        os.mkdir(path)
        self.version, self.path = version, path

    def enter(self):
        """Called in the child, before it becomes the program."""
        write(self.path + '/cgroup.procs', str(os.getpid()))

    def start_peak(self):
        """Peaks count from here on where the kernel can do that (v2: since 6.12)."""
        if self.version == 1:
            write(self.path + '/memory.max_usage_in_bytes', '0')
            self.peak_file = open(self.path + '/memory.max_usage_in_bytes')
            return True
        try:
            self.peak_file = open(self.path + '/memory.peak', 'r+')
            self.peak_file.write('reset\n')
            self.peak_file.flush()
            return True
        except OSError:
            self.peak_file = open(self.path + '/memory.peak') if os.path.exists(self.path + '/memory.peak') else None
            return False

    def peak(self):
        if self.peak_file is None:
            return None
        self.peak_file.seek(0)
        return int(self.peak_file.read())

    def own_memory(self):
        """Anonymous memory now: what is not page cache."""
        stat = dict(line.split() for line in read(self.path + '/memory.stat').splitlines())
        return int(stat['rss' if self.version == 1 else 'anon'])

    def kills(self):
        events = read(self.path + ('/memory.oom_control' if self.version == 1 else '/memory.events'))
        return sum(int(line.split()[1]) for line in events.splitlines() if line.startswith('oom_kill '))

    def close(self):
        if self.holder:
            self.holder.kill()
            self.holder.wait()
        elif self.path:
            for _ in range(50):
                try:
                    os.rmdir(self.path)
                    break
                except OSError:
                    time.sleep(0.1)
        self.path = self.holder = None


# ---- the page cache and the disk ----------------------------------------------------------------------------------------

def make_cold(files, everything):
    os.sync()
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    if everything:
        write('/proc/sys/vm/drop_caches', '3')


def cached(files):
    """Bytes of the files that the page cache has, or None where `fincore` is missing."""
    if not shutil.which('fincore'):
        return None
    out = subprocess.run(['fincore', '-b', '-n', '-r', '-o', 'RES', *files], capture_output=True, text=True)
    return sum(map(int, out.stdout.split())) if out.returncode == 0 else None


def disk_speed(path, seconds=3):
    """(bytes per second, how) of sequential direct reads of the weights themselves."""
    for engine in ('io_uring', 'libaio'):
        if shutil.which('fio'):
            out = subprocess.run(['fio', '--name=bound', '--filename=' + path, '--readonly', '--rw=read', '--bs=4M', '--direct=1', '--iodepth=16',
                                  '--ioengine=' + engine, '--time_based', f'--runtime={seconds}', '--output-format=json'],
                                 capture_output=True, text=True)
            if out.returncode == 0:
                report = json.loads(out.stdout[out.stdout.index('{'):])
                return report['jobs'][0]['read']['bw_bytes'], f"fio {report['fio version'].removeprefix('fio-')}, {engine}, direct, 4 MiB, depth 16"
    begin = time.perf_counter()
    out = subprocess.run(['dd', 'if=' + path, 'of=/dev/null', 'bs=8M', 'iflag=direct', 'count=256'], capture_output=True, text=True)
    if out.returncode:
        raise Failed('neither fio nor dd reads ' + os.path.basename(path) + ' directly')
    return min(os.path.getsize(path), 2048 * MIB) / (time.perf_counter() - begin), 'dd, direct, 8 MiB'


# ---- a run --------------------------------------------------------------------------------------------------------------

def busy():
    """CPU seconds that the whole machine spent."""
    ticks = list(map(int, read('/proc/stat').splitlines()[0].split()[1:9]))
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf('SC_CLK_TCK')


def last_words(path):
    """The line of a log that says most about a failure."""
    lines = [line.strip() for line in read(path).splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r'error', line, re.I)]
    return (errors or lines or ['it said nothing'])[-1][:200]


def run_in(cgroup, command, log, timeout):
    """Runs a program in the cgroup; its JSON, and what the kernel counted for it."""
    reset = cgroup.start_peak()
    kills = cgroup.kills()
    own, begin, busy_before = 0, time.perf_counter(), busy()
    with open(log + '.out', 'w') as out, open(log + '.err', 'w') as err:
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, preexec_fn=cgroup.enter, env=ENVIRONMENT)
        except (OSError, subprocess.SubprocessError) as e:
            raise Failed(f'{os.path.basename(command[0])} did not start: {e}')
        late = False
        while True:
            pid, status, used = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            own = max(own, cgroup.own_memory())
            if time.perf_counter() - begin > timeout:
                late = True
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(0.1)
        child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    if cgroup.kills() > kills:
        raise Failed(f'killed: {cgroup.limit // MIB} MiB were not enough')
    if late:
        raise Failed(f'not done after {timeout} s')
    if child.returncode:
        raise Failed(f'exit {child.returncode}: {last_words(log + ".err")}')
    answer = json.loads(read(log + '.out').strip().splitlines()[-1])
    return dict(answer=answer, wall_seconds=wall, cpu_seconds=used.ru_utime + used.ru_stime, major_faults=used.ru_majflt,
                read_bytes=used.ru_inblock * 512,  # the kernel keeps it as bytes; direct I/O, page faults and read-ahead count
                peak_bytes=cgroup.peak(), peak_since_start=reset, own_peak_bytes=own,
                others_cpus=max(0.0, busy() - busy_before - used.ru_utime - used.ru_stime) / wall)


# ---- the programs -------------------------------------------------------------------------------------------------------

def prepared(args, target, command):
    """Makes what a peer needs from the checkpoint, once for this checkpoint."""
    stamp = json.dumps([[os.path.basename(f), os.path.getsize(f), os.stat(f).st_mtime_ns] for f in weights(args.model)])
    mark = target + '.made-of'
    if not (os.path.exists(mark) and os.path.exists(target) and read(mark) == stamp):
        shutil.rmtree(target) if os.path.isdir(target) else os.path.exists(target) and os.remove(target)
        print(f'preparing {os.path.basename(target)} ...', file=sys.stderr)
        with open(target + '.log', 'w') as log:
            if subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=ENVIRONMENT).returncode:
                raise Failed('not prepared: ' + last_words(target + '.log'))
        write(mark, stamp)


def weights(directory):
    return sorted(glob.glob(os.path.join(directory, '*.safetensors')))


class Narrows:
    name = 'narrows'

    def __init__(self, args):
        self.args = args
        if not os.access(args.narrows, os.X_OK):
            raise Failed(f'{args.narrows} is not a program')
        self.version = subprocess.run([args.narrows, '--version'], capture_output=True, text=True).stdout.strip()
        self.files = weights(args.model)

    def command(self, tokens):
        return [self.args.narrows, 'run', self.args.model, '--ids', self.args.ids, '-n', str(tokens), '--greedy', '--ignore-eos', '--json', '--quiet',
                '--device', 'cpu', '--threads', str(self.args.threads), '--ram', self.args.narrows_ram]

    def figures(self, run, cgroup, log):
        stats = run['answer']['stats']
        # The same with one new token: what load and prefill read. The rest is decode.
        before = run_in(cgroup, self.command(1), log + '-prefill', self.args.timeout)
        passes = stats['new_tokens'] - 1
        return dict(tokens=run['answer']['tokens'][0], passes=passes, seconds_per_token=stats['seconds_per_token'],
                    decode_bytes_read=max(0, run['read_bytes'] - before['read_bytes']),
                    predicted_seconds_per_token=stats['predicted_seconds_per_token'], bound=stats['bound'])


class Peer:
    def figures(self, run, cgroup, log):
        self.version = run['answer']['version']
        return run['answer']


class AirLLM(Peer):
    name = 'AirLLM'

    def __init__(self, args):
        self.args, self.version = args, 'airllm'
        split = os.path.join(args.work, 'airllm')
        self.base = [args.python, '-B', os.path.join(HERE, 'airllm_peer.py'), '--model', args.model, '--split', split, '--threads', str(args.threads)]
        prepared(args, split, [*self.base, '--split-only'])
        self.files = weights(os.path.join(split, 'splitted_model'))

    def command(self, tokens):
        return [*self.base, '--ids', self.args.ids, '--tokens', str(tokens)]


class LlamaCpp(Peer):
    name = 'llama.cpp'

    def __init__(self, args):
        self.args, self.version = args, 'llama-cpp-python'
        self.gguf = os.path.join(args.work, 'model.gguf')
        prepared(args, self.gguf, [args.python, '-B', os.path.join(HERE, 'to_gguf.py'), args.model, self.gguf])
        self.files = [self.gguf]

    def command(self, tokens):
        return [self.args.python, '-B', os.path.join(HERE, 'llama_cpp_peer.py'), '--model', self.gguf, '--ids', self.args.ids,
                '--tokens', str(tokens), '--threads', str(self.args.threads)]


PROGRAMS = {program.name: program for program in (Narrows, LlamaCpp, AirLLM)}


def measure(name, args):
    """The rows of a program."""
    try:
        program = PROGRAMS[name](args)
    except Failed as e:
        return [dict(program=name, why=str(e))]
    rows = []
    cgroup = Cgroup(re.sub(r'\W', '', name.lower()), args.memory)
    try:
        make_cold(program.files, not args.keep_caches)
        for state in ('cold', 'warm'):
            print(f'{name}, {state} ...', file=sys.stderr)
            row = dict(program=name, state=state, cached_before=cached(program.files))
            log = os.path.join(args.work, f'{re.sub(r"[^a-z]", "", name.lower())}-{state}')
            try:
                run = run_in(cgroup, program.command(args.tokens), log, args.timeout)
                row.update(program.figures(run, cgroup, log))
                run.pop('answer')
                row.update(run)
            except Failed as e:
                row['why'] = str(e)
            except (ValueError, KeyError, IndexError, TypeError) as e:
                row['why'] = f'its answer was not understood: {type(e).__name__}: {e}'
            row['version'] = program.version
            rows.append(row)
    finally:
        cgroup.close()
    return rows


def same_tokens(rows, args):
    """How many first tokens each program shares with narrows, and AirLLM's in f32 where its bf16 differs."""
    first = {}
    for row in rows:
        if 'tokens' in row:
            first.setdefault(row['program'], row['tokens'])
    ours = first.get('narrows')
    if not ours:
        return {}
    common = {name: next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
              for name, theirs in first.items() if name != 'narrows'}
    if common.get('AirLLM', args.tokens) < args.tokens and not args.no_check:
        print('AirLLM in float32, for its tokens only ...', file=sys.stderr)
        n = min(4, args.tokens)
        out = subprocess.run([*AirLLM(args).command(n), '--dtype', 'float32'], capture_output=True, text=True, env=ENVIRONMENT)
        if out.returncode == 0:
            theirs = json.loads(out.stdout.strip().splitlines()[-1])['tokens']
            common[f'AirLLM in float32 (of {n})'] = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), n)
    return common


# ---- the bound and the table --------------------------------------------------------------------------------------------

def pass_bytes(directory):
    """Bytes of weights that every pass multiplies with: all but the embedding table, of which it needs a row."""
    total = 0
    for path in weights(directory):
        with open(path, 'rb') as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), 'little')))
        total += sum(t['data_offsets'][1] - t['data_offsets'][0] for name, t in header.items()
                     if name != '__metadata__' and not name.endswith('embed_tokens.weight'))
    with open(os.path.join(directory, 'config.json')) as f:
        config = json.load(f)
    if config.get('tie_word_embeddings'):
        total += config['vocab_size'] * config['hidden_size'] * 2
    return total


def resident_bytes(args):
    """Weights that narrows keeps in its memory, by its own plan."""
    try:
        out = subprocess.run([args.narrows, 'plan', args.model, '--ram', args.narrows_ram, '--device', 'cpu', '--json',
                              '--ctx', str(args.prompt + args.tokens)], capture_output=True, text=True)
        return json.loads(out.stdout)['resident_bytes']
    except (OSError, ValueError, KeyError):
        return None


def mib(n):
    return '?' if n is None else f'{n / MIB:.0f}'


def table(rows, speed):
    lines = ['| program | caches | s/token | tok/s | read a token, MiB | that at the disk\'s speed, s | read in all, MiB | peak of the cgroup, MiB | of it not page cache, MiB | CPUs used by others and the kernel |',
             '|---|---|---:|---:|---:|---:|---:|---:|---:|---:|']
    for row in rows:
        if 'why' in row:
            lines.append(f"| {row['program']} | {row.get('state', '')} | {row['why'].replace('|', '/')} | | | | | | | |")
            continue
        each = row['decode_bytes_read'] / row['passes']
        lines.append(f"| {row['program']} | {row['state']} | {row['seconds_per_token']:.3f} | {1 / row['seconds_per_token']:.2f} | {mib(each)} | "
                     f"{each / speed:.3f} | {mib(row['read_bytes'])} | {mib(row['peak_bytes'])} | {mib(row['own_peak_bytes'])} | {row['others_cpus']:.2f} |")
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, help='a Llama checkpoint, bf16: `narrows synth llama-1.1b -o DIR` makes one')
    parser.add_argument('--narrows', default='target/release/narrows')
    parser.add_argument('--memory', default='1600M', help='limit of the cgroup [default: 1600M]')
    parser.add_argument('--narrows-ram', help="narrows' --ram [default: 400M less than --memory]")
    parser.add_argument('--tokens', type=int, default=16, help='new tokens [default: 16]')
    parser.add_argument('--prompt', type=int, default=16, help='positions of the prompt [default: 16]')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help="threads of each [default: all of the machine's]")
    parser.add_argument('--work', required=True, help='where the GGUF, the split checkpoint and logs go: twice the size of the model')
    parser.add_argument('--json', help='where everything measured goes')
    parser.add_argument('--python', default=sys.executable, help='a Python that has the peers [default: this one]')
    parser.add_argument('--programs', default=','.join(PROGRAMS), help='[default: %(default)s]')
    parser.add_argument('--timeout', type=int, default=900, help='seconds that a run may take [default: 900]')
    parser.add_argument('--keep-caches', action='store_true', help="evict only the weights from the page cache, nothing of the machine's other users")
    parser.add_argument('--no-check', action='store_true', help='do not run AirLLM in float32 where its tokens differ')
    args = parser.parse_args()
    if args.tokens < 2:
        parser.error('--tokens: 2 at least, for the first is prefill')
    args.memory_text, args.memory = args.memory, size(args.memory)
    args.narrows_ram = args.narrows_ram or f'{args.memory // MIB - 400}M'
    args.model, args.work, args.narrows = map(os.path.abspath, (args.model, args.work, args.narrows))
    unknown = set(args.programs.split(',')) - set(PROGRAMS)
    if unknown or not weights(args.model):
        parser.error(f'no such program: {", ".join(unknown)}' if unknown else f'no safetensors in {args.model}')
    if not args.keep_caches and not os.access('/proc/sys/vm/drop_caches', os.W_OK):
        raise SystemExit('the page cache cannot be dropped: run this as root, or with --keep-caches')
    os.makedirs(args.work, exist_ok=True)
    global ENVIRONMENT
    ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE='1', PYTHONWARNINGS='ignore')

    with open(os.path.join(args.model, 'config.json')) as f:
        vocabulary = json.load(f)['vocab_size']
    args.ids = os.path.join(args.work, 'ids.safetensors')
    write_ids(args.ids, [1] + [i * 7919 % vocabulary for i in range(1, args.prompt)])

    largest = max(weights(args.model), key=os.path.getsize)
    load = os.getloadavg()
    rows, speeds = [], []
    cgroup = Cgroup('probe', args.memory)  # refuse before anything is prepared
    kind = f'v{cgroup.version}' + (' (systemd scope)' if cgroup.holder else '')
    cgroup.close()
    for name in args.programs.split(','):
        speeds.append(disk_speed(largest))  # others may use the disk too: before each program, and once more at the end
        rows += measure(name, args)
    speeds.append(disk_speed(largest))
    common = same_tokens(rows, args)

    speed, how = max(speeds)
    need, resident = pass_bytes(args.model), resident_bytes(args)
    bounds = dict(pass_bytes=need, resident_bytes=resident, disk_bytes_per_second=[s for s, _ in speeds], disk_how=how,
                  seconds_any=max(0, need - args.memory) / speed, seconds_narrows=None if resident is None else max(0, need - resident) / speed)
    cpu = next((line.split(':')[1].strip() for line in read('/proc/cpuinfo').splitlines() if line.startswith('model name')), 'CPU')
    result = dict(date=datetime.date.today().isoformat(), cpu=cpu, cpus=os.cpu_count(), kernel=os.uname().release, load_before=load, cgroup=kind,
                  memory=args.memory, narrows_ram=args.narrows_ram, tokens=args.tokens, prompt=args.prompt, threads=args.threads,
                  caches_dropped='the weights' if args.keep_caches else 'all', rows=rows, same_first_tokens=common, bounds=bounds)
    if args.json:
        write(args.json, json.dumps(result, indent=1) + '\n')

    print(f"{result['date']}, {cpu} ({os.cpu_count()} CPUs), Linux {result['kernel']}, load before {load[0]:.2f}; cgroup {kind}, {args.memory_text}; "
          f"{args.prompt} positions of prompt, {args.tokens} new tokens, {args.threads} threads\n")
    print(table(rows, speed))
    print('\nVersions: ' + '; '.join(dict.fromkeys(row['version'] for row in rows if 'version' in row)) + '.')
    print(f"\nDisk: {', '.join(f'{s / 1e9:.2f}' for s, _ in speeds)} GB/s before each program and at the end ({how}); the fastest counts. A pass multiplies with {mib(need)} MiB.")
    print(f"Bound of any program here, (pass - limit of the cgroup) / disk: {bounds['seconds_any']:.3f} s/token.")
    if resident is not None:
        print(f"Bound of narrows with --ram {args.narrows_ram}, (pass - {mib(resident)} MiB resident) / disk: {bounds['seconds_narrows']:.3f} s/token.")
    for name, n in common.items():
        print(f'{name}: the first {n} tokens are those of narrows.')


if __name__ == '__main__':
    main()
