#!/usr/bin/env python3
"""What run.sh starts: checks narrows on the GPU of this machine and measures it beside the targets and bounds.

Needs no package. Where PyTorch is installed it is the measuring stick for matrix products and for attention. Every
step has its own time limit, none stops those after it, and the results are written anew after each.
"""
import array, datetime, gzip, json, math, mmap, os, re, shlex, shutil, signal, statistics, struct, subprocess, sys, tarfile, threading, time

HERE = os.path.dirname(os.path.abspath(__file__))
GIB, VRAM, TILE = 1 << 30, '4G', 8 << 20
# Of `narrows synth`: shape, bytes of the embedding and the head, bytes of a layer, layers of the whole model.
LLAMA_70B = ('llama-70b', 4.203e9, 1.7112e9, 80)
LLAMA_405B = ('llama-405b', 8.406e9, 6.3754e9, 126)
LLAMA_1B = ('llama-1.1b', 0.263e9, 0.0881e9, 22)
# Operations in bf16 (rope has none) whose bytes bound them, with how many rows, and the share of the measured roof
# that they should reach.
BANDWIDTH = [('linear', 'bf16', (1,), 85), ('attention', 'bf16', (1,), 70)] + [(operation, encoding, (512, 4096), 80) for operation, encoding in (('rms_norm', 'bf16'), ('add_rms_norm', 'bf16'), ('rope', 'f32'), ('swiglu', 'bf16'))]
# What `narrows bench kernels` measures: all with few rows and many, a long prompt, one row of a long context.
KERNELS = [['--rows', '1,8,16,64,512', '--positions', '8192'],
           ['--op', 'attention,rms_norm,add_rms_norm,head_norm,rope,swiglu,add,gather_rows,scatter_add,kv_write', '--rows', '4096', '--positions', '4096'],
           ['--op', 'attention', '--rows', '1', '--positions', '32768']]
SMALL_KERNELS = [['--shape', 'llama-1.1b', '--rows', '1,9', '--positions', '32', '--size', '256K', '--runtime', '1us', '--loops', '1']]
GEMMS = [(8192, 8192), (28672, 8192), (8192, 28672)]


def torch_stick():
    """Prints what PyTorch needs for the same work, in seconds."""
    import torch
    torch.set_grad_enabled(False)

    def seconds(run, repeats=9):
        def series(n):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for turn in range(n): run(turn)
            end.record(); end.synchronize()
            return start.elapsed_time(end) / 1e3 / n
        series(3)
        n = max(4, int(0.02 / series(5)))
        return statistics.median(series(n) for _ in range(repeats))

    out = {'torch': torch.__version__, 'cuda': torch.version.cuda, 'matmul_seconds': {}}
    for rows, cols in GEMMS:
        # Two matrices in turn, so that neither is found in the cache.
        x, ws = torch.randn(512, cols, dtype=torch.bfloat16, device='cuda'), [torch.randn(rows, cols, dtype=torch.bfloat16, device='cuda') for _ in range(2)]
        out['matmul_seconds'][f'[{rows}, {cols}]'] = seconds(lambda turn: torch.nn.functional.linear(x, ws[turn % 2]))
        del x, ws
    q = torch.randn(1, 64, 4096, 128, dtype=torch.bfloat16, device='cuda')
    # Keys and values repeated beforehand: every version can do that, and it is not timed.
    k, v = (torch.randn(1, 8, 4096, 128, dtype=torch.bfloat16, device='cuda').repeat_interleave(8, dim=1) for _ in range(2))
    out['prefill_seconds'] = seconds(lambda turn: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    host, to = torch.ones(128, TILE, dtype=torch.uint8).pin_memory(), torch.empty(4, TILE, dtype=torch.uint8, device='cuda')
    out['h2d_gigabytes_per_second'] = TILE / 1e9 / seconds(lambda turn: to[turn % 4].copy_(host[turn % 128], non_blocking=True))
    print(json.dumps(out))


def read_tensor(path, name):
    """The values of a tensor of a safetensors file, or None."""
    found = read_shaped(path, name)
    return found and found[0]


def read_shaped(path, name):
    """The same with its shape."""
    with open(path, 'rb') as f:
        length, = struct.unpack('<Q', f.read(8))
        entry = json.loads(f.read(length)).get(name)
        if entry is None: return None
        start, end = entry['data_offsets']
        f.seek(8 + length + start)
        values = array.array({'F32': 'f', 'I64': 'q'}[entry['dtype']])
        values.frombytes(f.read(end - start))
        return values, entry['shape']


def name_of(case):
    return f'{case["operation"]} {case["encoding"]} {case["shape"]} x {case["rows"]}'


def write_ids(path, ids):
    raw = array.array('q', ids).tobytes()
    header = json.dumps({'input_ids': {'dtype': 'I64', 'shape': [1, len(ids)], 'data_offsets': [0, len(raw)]}}).encode()
    with open(path, 'wb') as f: f.write(struct.pack('<Q', len(header)) + header + raw)


class Bundle:
    def __init__(self, out):
        self.out = os.path.abspath(out)
        os.makedirs(os.path.join(self.out, 'logs'), exist_ok=True)
        # As it stands in commands: they are to be repeated in the bundle's folder.
        relative = os.path.relpath(self.out, HERE)
        self.shown = self.out if relative.startswith('..') else relative
        self.start, self.seconds = time.monotonic(), float(os.environ.get('NARROWS_BUNDLE_SECONDS', 580))
        self.models = os.path.abspath(os.environ['NARROWS_BUNDLE_DIR']) if os.environ.get('NARROWS_BUNDLE_DIR') else os.path.join(HERE, 'models')
        os.chdir(HERE)
        self.limit = float(os.environ.get('NARROWS_BUNDLE_GB', 40)) * 1e9
        self.small = os.environ.get('NARROWS_BUNDLE_SMALL') == '1'
        self.environment = {**os.environ, 'NARROWS_TEST_GPU': '1', 'CUDA_DEVICE_ORDER': 'PCI_BUS_ID'}
        self.ids = os.path.join(self.shown, 'ids.safetensors')
        self.results = {'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'), 'checks': [], 'streams': []}
        with open('build.json') as f: self.results['build'] = json.load(f)

    def path(self, name): return os.path.join(self.shown, name)

    def left(self): return self.seconds - (time.monotonic() - self.start)

    def run(self, log, command, limit):
        """Runs a command and gives its exit code (None: out of time), output and seconds; its log is kept."""
        start = time.monotonic()
        with open(self.path(f'logs/{log}.log'), 'a') as file:
            file.write('$ ' + shlex.join(command) + '\n'); file.flush()
            p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, stdin=subprocess.DEVNULL, env=self.environment, start_new_session=True)
            try:
                out = p.communicate(timeout=max(1, min(limit, self.left())))[0].decode(errors='replace')
                code = p.returncode
            except subprocess.TimeoutExpired:
                os.killpg(p.pid, signal.SIGKILL)
                out, code = p.communicate()[0].decode(errors='replace'), None
            except BaseException:  # interrupted: it is in a session of its own
                os.killpg(p.pid, signal.SIGKILL)
                raise
            seconds = time.monotonic() - start
            file.write(f'{out}\n[{"out of time" if code is None else f"exit {code}"} after {seconds:.1f} s]\n')
        return code, out, seconds

    def json(self, log, command, limit):
        """What a command prints as JSON; a ValueError with its exit code and last line where it fails."""
        code, out, _ = self.run(log, command, limit)
        if code == 0: return json.loads(out)
        raise ValueError(self.why(log, code))

    def why(self, log, code):
        """Why the last command of a log failed: its exit code and its error, else its last line."""
        with open(self.path(f'logs/{log}.log')) as f: lines = [l.strip() for l in f.read().rsplit('\n$ ', 1)[-1].splitlines()[1:] if l.strip() and not l.startswith('[')]
        error = next((l for l in lines if l.startswith('error')), lines[-1] if lines else 'nothing said')
        return f'{"out of time" if code is None else f"exit {code}"}: {error}'

    def repeatable(self, command):
        """A command as it can be given again in the bundle's folder, also on another machine."""
        text = shlex.join(command).replace(self.out, '$OUT')
        return ('NARROWS_TEST_GPU=1 ' if './kernels-test' in command else '') + (text.replace(self.models, '$NARROWS_BUNDLE_DIR') if os.path.isabs(self.models) else text)

    def check(self, step, what, ok, detail='', command=None):
        """Notes a result: True, False, or None for what could not be done here."""
        status = {True: 'ok', False: 'FAIL', None: 'skipped'}[ok]
        self.results['checks'].append({'step': step, 'check': what, 'status': status, 'detail': detail, 'command': command and self.repeatable(command)})
        print(f'{status:8}{step}: {what}{": " if detail else ""}{detail}', flush=True)
        self.save()

    def judge(self, step, what, ok, detail='', command=None):
        """As `check`, for times: those of the software driver and of small sizes say nothing."""
        self.check(step, what, None if self.small else bool(ok), detail + (' (no measurement)' if self.small else ''), command)

    # The steps.

    def doctor(self):
        command = ['./narrows', 'doctor', '--json']
        try: doctor = self.json('doctor', command, 60)
        except ValueError as e: return f'narrows doctor failed: {e}'
        self.results['doctor'] = doctor
        if not doctor['devices']: return doctor['driver'] or 'the CUDA driver has no device'
        gpu = doctor['devices'][0]
        if gpu['problem']: return f'{gpu["device"]}: {gpu["problem"]}'
        self.results['software_driver'] = gpu['software']
        self.small = self.small or gpu['software']
        self.results['small'] = self.small
        link = '{generation}.0 x{width}, at most {max_generation}.0 x{max_width}'.format(**gpu['link']) if gpu['link'] else 'unknown'
        self.check('doctor', 'a GPU', True, f'{gpu["name"]}, {gpu["total_bytes"] / GIB:.1f} GiB, driver {gpu["driver_release"] or "of unknown release"}, CUDA {gpu["driver_cuda"]}, PCIe {link} (idle links rest in a lower generation)', command)

    def tests(self):
        # Under the software driver a few kernels show that this runs; `cargo test` tests them all with it.
        command = ['./kernels-test'] + (['argmax::', 'add::'] if self.small else [])
        code, out, seconds = self.run('tests', command, 200)
        ran = dict(re.findall(r'^test (\S+) \.\.\. (\w+)', out, re.M))
        names = re.findall(r'^(\S+): test$', self.run('tests', command + ['--list', '--format', 'terse'], 20)[1], re.M)
        bad = [name for name in names if ran.get(name) not in ('ok', 'ignored')]
        how = 'out of time' if code is None else f'exit {code}'
        self.check('tests', 'kernels against their reference', code == 0 and not bad, f'{len(names) - len(bad)} of {len(names)} in {seconds:.0f} s, {how}', command)
        # One fault leaves a context in which all that follows fails: in a process of its own each has its own say.
        end = time.monotonic() + 90
        for name in bad:
            if time.monotonic() > end: self.check('tests', name, None, 'not ok with the others; no time to run it alone'); continue
            alone = ['./kernels-test', '--exact', name]
            code, out, _ = self.run('tests', alone, 40)
            panic = re.search(r"panicked at.*\n(.*)", open(self.path('logs/tests.log')).read().rsplit('$ ', 1)[1])
            self.check('tests', name, code == 0, 'alone, after it was not ok with the others' + (f': {panic.group(1)}' if code != 0 and panic else ''), alone)

    def goldens(self):
        """Logits beside those of transformers, by the rules of crates/narrows/tests/cuda.rs."""
        names = sorted(os.listdir('goldens'))
        for name in names[:2] if self.small else names:
            expected, got = f'goldens/{name}/expected.safetensors', self.path('logits.safetensors')
            command = ['./narrows', 'logits', f'goldens/{name}', '--ids', expected, '--out', got, '--device', 'cuda:0', '--quiet']
            code, _, _ = self.run('goldens', command, 60)
            if code != 0: self.check('goldens', name, False, self.why('goldens', code), command); continue
            exact, bf16 = read_tensor(expected, 'logits'), read_tensor(expected, 'logits_bf16')
            sequences, positions = read_shaped(expected, 'input_ids')[1]
            width, routing, rows = len(exact) // (sequences * positions), f'goldens/{name}/routing.safetensors', range(sequences * positions)
            mixture = os.path.exists(routing)
            if mixture:
                # A row that a rounding sends to another expert, and those after it, are another computation: compared are
                # those that go to the same experts whatever the rounding.
                gaps, theirs = read_tensor(routing, 'gap'), sorted(read_tensor(routing, 'off_bf16'))
                rows = [row for row in rows if min(gaps[row // positions * positions:row + 1]) >= 0.02]

            def off(a, b):
                if len(a) != len(b): return math.inf
                return math.sqrt(math.fsum((a[i] - b[i]) ** 2 for row in rows for i in range(row * width, (row + 1) * width)) / (len(rows) * width))
            # Goldens without a bf16 run: those that have one are off by 0.4 to 0.8 % of the logits.
            limit, rule = 2 * (theirs[len(theirs) // 2] if mixture else off(exact, bf16) if bf16 else 0.004 * off(exact, [0.0] * len(exact))), 'twice that of transformers in bf16' if mixture or bf16 else '0.8 % of the logits'
            error = off(exact, read_tensor(got, 'logits'))
            self.check('goldens', name, error <= limit, f'RMS error {error:.2e}, limit {limit:.2e}: {rule}' + (f'; {len(rows)} of {sequences * positions} rows' if mixture else ''), command)
            os.remove(got)

    def bits(self):
        """The same logits however little memory there is, whatever the tiles, from RAM and from disk."""
        write_ids(self.ids, [1, 335, 13, 298, 397, 776, 261, 874])
        got, first = self.path('logits.safetensors'), None
        # Tile, slots, how much of the weights stays on the device, MiB of host memory beyond the least.
        cases = [(None, None, None, None), ('512K', 2, 0.6, None), ('64K', 1, 0.0, None), ('256K', 4, 0.3, 1), ('100K', 3, 0.1, 3), ('1M', 8, 0.9, None)]
        for tile, slots, share, ram in cases[:4] if self.small else cases:
            options = ['--device', 'cuda:0']
            if tile:
                options += ['--tile', tile, '--slots', str(slots)]
                try: plan = self.json('bits', ['./narrows', 'plan', 'demo', *options, '--ctx', '16', '--json'], 60)
                except ValueError as e: self.check('bits', f'plan {shlex.join(options)}', False, str(e)); continue
                least, all_of_it = plan['device']['minimum_bytes'], plan['device']['all_resident_at_bytes']
                # A step of eight rows needs some more than the plan's of one.
                options += ['--vram', f'{(least + (1 << 20) + share * (all_of_it - least)) / 1024:.0f}K']
                if ram: options += ['--ram', f'{plan["minimum_bytes"] // 1024 + (ram << 10)}K']
            command = ['./narrows', 'logits', 'demo', '--ids', self.ids, '--out', got, '--quiet', *options]
            code, _, _ = self.run('bits', command, 60)
            if code != 0: self.check('bits', shlex.join(options), False, self.why('bits', code), command); continue
            bits = read_tensor(got, 'logits').tobytes()
            first = first or bits
            self.check('bits', shlex.join(options), bits == first, 'the first' if bits is first else 'the same bits' if bits == first else 'other bits', command)
            os.remove(got)

    def bench(self):
        """Every operation by encoding and rows, beside the roof that the same program measures."""
        total = self.results['doctor']['devices'][0]['total_bytes']
        # Room for the largest matrix, the head in float32, where the device has it.
        size = min(4096, total // 4 >> 20)
        usual = ['--shape', 'llama-70b', '--size', f'{size}M', '--runtime', '20ms', '--loops', '5']
        files = []  # `results.json` has what they hold: they go once the roofline is drawn
        for number, flags in enumerate(SMALL_KERNELS if self.small else KERNELS):
            command = ['./narrows', 'bench', 'kernels', '--device', 'cuda:0', *([] if self.small else usual), *flags, '--json', '--quiet']
            start = time.monotonic()
            try: record = self.json('bench', command, 200)
            except ValueError as e: self.check('bench', shlex.join(flags), False, str(e), command); continue
            cases = [r for r in record['results'] if r['bench'] == 'kernel']
            self.check('bench', shlex.join(flags), True, f'{len(cases)} cases in {time.monotonic() - start:.0f} s', command)
            self.results.setdefault('bench', []).append(record)
            files.append(self.path(f'kernels-{number + 1}.json'))
            with open(files[-1], 'w') as f: json.dump(record, f)
            for case in cases:
                # No kernel is faster than its roof: one that is shows that the roof, or what is counted, is wrong.
                share = case['bytes_per_second'] / case['roof_bytes_per_second']
                if share > 1.03 and not self.small: self.judge('bench', name_of(case), False, f'{share:.1%} of the roof', command)
                for operation, encoding, rows, target in BANDWIDTH:
                    if (case['operation'], case['encoding']) == (operation, encoding) and case['rows'] in rows:
                        self.judge('bench', name_of(case), 100 * share >= target, f'{share:.1%} of the roof, target {target} %', command)
        if files:
            command = ['./narrows', 'bench', 'report', *files, '-o', self.path('roofline.svg')]
            code, _, _ = self.run('bench', command, 20)
            self.check('bench', 'the roofline is drawn', code == 0, 'roofline.svg' if code == 0 else self.why('bench', code))
            for file in files: os.remove(file)

    def kernels(self):
        return [case for record in self.results.get('bench', []) for case in record['results'] if case['bench'] == 'kernel']

    def pcie(self):
        """Copies from and to every kind of host memory; the program compares what arrived with what was sent."""
        some = ['--size', '4K,1M', '--streams', '1,2', '--loops', '1'] if self.small else ['--size', '64K,1M,16M,256M']
        command = ['./narrows', 'bench', 'pcie', '--device', 'cuda:0', *some, '--json', '--quiet']
        record = self.json('pcie', command, 120)
        self.results['pcie'] = record
        figures = ', '.join(f'{case["name"]} {case["sum"]} GB/s' for case in record['nvbandwidth']['testcases'])
        self.check('pcie', 'copies arrive as they were sent', bool(record['results']) and all(r['verified'] for r in record['results']), figures + (' (no measurement)' if self.small else ''), command)

    def bare(self):
        """Bytes per second of bare copies to the device as weights are copied: from registered memory, about a tile each."""
        copies = [r for r in self.results.get('pcie', {}).get('results', []) if r['test'] == 'host_to_device_memcpy_ce' and r['memory'] == 'registered' and r['streams'] == 1]
        # Where memory cannot be registered, what is copied at all.
        copies = copies or [r for r in self.results.get('pcie', {}).get('results', []) if r['test'] == 'host_to_device_memcpy_ce']
        return min(copies, key=lambda r: abs(math.log(r['size'] / TILE)))['bytes_per_second'] if copies else None

    def torch(self):
        command = ['python3', 'checks.py', '--torch']
        try: self.results['torch'] = stick = None if self.small else self.json('torch', command, 120)
        except ValueError as e: return self.check('torch', 'the measuring stick', None, str(e), command)
        if not stick: return self.check('torch', 'the measuring stick', None, 'small sizes and the software driver have nothing to compare')
        self.check('torch', 'the measuring stick', True, f'PyTorch {stick["torch"]}, CUDA {stick["cuda"]}; pinned copies {stick["h2d_gigabytes_per_second"]:.2f} GB/s', command)
        ours = {(case['operation'], case['encoding'], str(case['shape']), case['rows']): case['seconds'] for case in self.kernels()}
        for shape, theirs in stick['matmul_seconds'].items():
            seconds = ours.get(('linear', 'bf16', shape, 512))
            if seconds: self.judge('torch', f'linear bf16 {shape} x 512', theirs / seconds >= 0.5, f'{seconds * 1e6:.0f} us, cuBLAS {theirs * 1e6:.0f} us: {theirs / seconds:.0%} of its speed, target 50 %')
        seconds, theirs = ours.get(('attention', 'bf16', '[64, 8, 128, 4096]', 4096)), stick['prefill_seconds']
        if seconds: self.judge('torch', 'prefill attention bf16 at 4096', seconds <= 2 * theirs, f'{seconds * 1e3:.2f} ms, PyTorch {theirs * 1e3:.2f} ms: {seconds / theirs:.2f} times, target at most 2')

    def sample(self):
        """Starts to ask nvidia-smi for memory and link five times a second; gives a function that ends it and tells."""
        if not shutil.which('nvidia-smi') or self.results['software_driver']: return lambda: []
        device = os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]
        p = subprocess.Popen(['nvidia-smi', '-i', device, '--query-gpu=memory.used,pcie.link.gen.current,pcie.link.width.current', '--format=csv,noheader,nounits', '-lms', '200'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        rows = []
        reader = threading.Thread(target=lambda: rows.extend([x.strip() for x in line.split(',')] for line in p.stdout), daemon=True)
        reader.start()
        # The first row is what was there before: nothing may begin until it is read.
        started = time.monotonic()
        while not rows and time.monotonic() < started + 10 and p.poll() is None: time.sleep(0.05)
        def end():
            p.terminate(); p.wait(); reader.join(5)
            return [[int(x) for x in row] for row in rows if len(row) == 3 and all(x.isdigit() for x in row)]
        return end

    def synth(self, step, shape, layers):
        """Writes a model; gives its folder and the speed at which it was written."""
        name, head, layer, _ = shape
        folder = os.path.join(self.models, f'{name}-{layers}')
        command = ['./narrows', 'synth', name, '--layers', str(layers), '-o', folder, '--quiet']
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(self.models, exist_ok=True)
        code, _, seconds = self.run(step, command, 240)
        if code != 0:
            shutil.rmtree(folder, ignore_errors=True)
            raise ValueError(f'{shlex.join(command)}: {"out of time" if code is None else f"exit {code}"} after {seconds:.0f} s')
        size = head + layers * layer
        self.check(step, f'{name} with --layers {layers}', True, f'{size / 1e9:.1f} GB written in {seconds:.0f} s', command)
        return folder, size / seconds

    def room(self, seconds):
        """The bytes that a model may have here, and what says so."""
        os.makedirs(self.models, exist_ok=True)
        limits = [(self.limit, 'NARROWS_BUNDLE_GB'), (0.9 * shutil.disk_usage(self.models).free, 'free disk'), (0.75 * (self.results['doctor']['memory_available_bytes'] or GIB), 'free RAM'), (seconds * self.write_speed, f'what is written in {seconds:.0f} s')]
        return min(limits)

    def memory(self):
        """Touches memory until the machine shows no more of it: that of a virtual machine may grow only as it is used."""
        if self.small: return self.check('memory', 'memory that grows as it is used', None, 'not in small')
        read = lambda: {line.split(':')[0]: int(line.split()[1]) << 10 for line in open('/proc/meminfo')}
        first, end = read(), time.monotonic() + min(90, self.left() / 4)
        now, still = first, 0
        while still < 2 and time.monotonic() < end:
            # Processes of their own: a machine that is out of memory ends one of them, and each touches with its own core.
            workers = os.cpu_count() or 1
            each = int(0.8 * now['MemAvailable'] / workers)
            touch = f'import mmap; mmap.mmap(-1, {each}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | {mmap.MAP_POPULATE:#x})'
            running = [subprocess.Popen([sys.executable, '-c', touch], stderr=subprocess.DEVNULL) for _ in range(workers)]
            for p in running: p.wait()
            time.sleep(1)
            before, now = now, read()
            still = 0 if now['MemTotal'] > before['MemTotal'] else still + 1
        self.results['memory'] = {'total_bytes': now['MemTotal'], 'available_bytes': now['MemAvailable'], 'total_bytes_at_first': first['MemTotal']}
        self.check('memory', 'memory that grows as it is used', True, f'{first["MemTotal"] / GIB:.1f} GiB at first, {now["MemTotal"] / GIB:.1f} GiB once touched')
        try: self.results['doctor'] = self.json('doctor', ['./narrows', 'doctor', '--json'], 60)
        except ValueError as e: self.check('memory', 'narrows doctor', False, str(e))

    def stream(self):
        write_ids(self.ids, range(5, 13))
        shape = LLAMA_1B if self.small else LLAMA_70B
        # How fast this disk and processor write a model decides how big one can be.
        probe, self.write_speed = self.synth('stream', LLAMA_1B, 1 if self.small else 22)
        if self.small: folder, layers, why = probe, 1, 'small'
        else:
            shutil.rmtree(probe)
            room, why = self.room(80)
            layers = min(shape[3], int((room - shape[1]) / shape[2]))
            if layers < 1: return self.check('stream', 'the headline run', None, f'{why}: room for {room / 1e9:.1f} GB, a layer and the head of {shape[0]} take {(shape[1] + shape[2]) / 1e9:.1f} GB')
            folder, self.write_speed = self.synth('stream', shape, layers)
        try:
            about = f'{layers} of {shape[3]} layers of {shape[0]} in bf16 ({why})'
            self.measure('stream', f'{about}, from pinned RAM', folder, 'auto', 4, 'trace-ram.json')
            self.measure('stream', f'{about}, from disk', folder, '96M' if self.small else '8G', 4, None)
        finally: shutil.rmtree(folder, ignore_errors=True)

    def wide(self):
        if self.small: return self.check('wide', 'a layer bigger than the budget', None, 'not in small')
        if not hasattr(self, 'write_speed'): return self.check('wide', 'a layer bigger than the budget', None, 'no speed of the disk from the step before')
        needed, (room, why) = LLAMA_405B[1] + LLAMA_405B[2], self.room(min(60, self.left() / 3))
        if needed > room: return self.check('wide', 'a layer bigger than the budget', None, f'{why}: room for {room / 1e9:.1f} of {needed / 1e9:.1f} GB')
        folder, _ = self.synth('wide', LLAMA_405B, 1)
        try: self.measure('wide', '1 layer of llama-405b in bf16 (6.4 GB)', folder, 'auto', 4, None)
        finally: shutil.rmtree(folder, ignore_errors=True)

    def measure(self, step, what, folder, ram, tokens, trace):
        vram = '160M' if self.small else VRAM
        options = ['--device', 'cuda:0', '--vram', vram, '--ram', ram]
        command = ['./narrows', 'plan', folder, *options, '--ctx', str(8 + tokens), '--json']
        try: plan = self.json(step, command, 60)
        except ValueError as e: return self.check(step, what, False, str(e), command)
        # As many tokens as there is time for: the first takes a pass as well, and the weights are read before.
        slow = plan['seconds_per_token']
        tokens = 2 if self.small else max(2, min(tokens, int(min(120, self.left() / 2) / max(slow, 1e-3))))
        command = ['./narrows', 'run', folder, '--ids', self.ids, '-n', str(tokens), '--greedy', '--ignore-eos', *options, '--json', '--quiet']
        if trace: command += ['--trace', self.path(trace)]
        end = self.sample()
        try: report, error = self.json(step, command, 180), None
        except ValueError as e: report, error = None, e
        samples = end()
        if error: return self.check(step, what, False, str(error), command)
        stats, device = report['stats'], plan['device']
        bare = self.bare()
        link, loop = (bare, 'bare copies of the bench') if bare else (device['h2d']['bytes_per_second'], 'the copies that the plan measured, no bench having run')
        bounds = {'h2d': device['h2d_bytes_per_pass'] / link, 'disk': plan['disk_bytes_per_pass'] / plan['disk']['bytes_per_second'], 'compute': plan['compute']['seconds_per_pass']}
        bound = max(bounds, key=bounds.get)
        seconds = stats['seconds_per_token']
        row = {'what': what, 'command': self.repeatable(command), 'seconds_per_token': seconds, 'predicted_seconds_per_token': stats['predicted_seconds_per_token'],
               'bounds_seconds': bounds, 'bound': bound, 'bare_h2d_bytes_per_second': link, 'bare_h2d': loop, 'h2d_bytes_per_pass': device['h2d_bytes_per_pass'], 'disk_bytes_per_pass': plan['disk_bytes_per_pass'],
               'h2d_bytes_per_second_in_decode': device['h2d_bytes_per_pass'] / seconds, 'h2d': stats['h2d'], 'disk': stats['disk'], 'compute': stats['compute'], 'pinning_seconds': stats['pinning_seconds'],
               'time_to_first_token_seconds': stats['time_to_first_token_seconds'], 'peak_device_bytes': stats['peak_device_bytes'], 'smi_mebibytes': [max(s[0] for s in samples) - samples[0][0], samples[0][0]] if samples else None,
               'link': 'PCIe {}.0 x{}'.format(*max(s[1:] for s in samples)) if samples else None}
        if trace: row['trace'] = self.overlap(trace)
        self.results['streams'].append(row)
        self.check(step, what, True, f'{seconds:.3f} s/token, bound {bounds[bound]:.3f} s ({bound})', command)
        cap = int(vram[:-1]) << {'M': 20, 'G': 30}[vram[-1]]
        smi = row['smi_mebibytes']
        self.check(step, 'device memory within the budget', stats['peak_device_bytes'] <= cap and (not smi or smi[0] << 20 <= cap),
                   f'{stats["peak_device_bytes"] / GIB:.3f} GiB of {vram}' + (f', nvidia-smi {smi[0]} MiB more than before ({smi[1]} MiB)' if smi else ''), command)
        if bound == 'h2d':
            rate = row['h2d_bytes_per_second_in_decode']
            self.judge(step, 'the link is as fast as in bare copies', rate >= 0.97 * link, f'{rate / 1e9:.2f} GB/s of {link / 1e9:.2f} in {loop}: {rate / link:.1%}, target 97 %', command)
        self.judge(step, 'a pass takes no longer than its bound', seconds <= 1.05 * bounds[bound], f'{seconds / bounds[bound]:.3f} times {bound}, target 1.05', command)

    def overlap(self, trace):
        """How much of each pass but the first the link was copying and the device computing; compresses the trace."""
        file, shares = self.path(trace), []
        with open(file) as f: events = [e for e in json.load(f)['traceEvents'] if e['ph'] == 'X']
        passes = sorted({e['args']['pass'] for e in events if e['cat'] == 'compute'})
        for number in passes[1:]:
            computing = [e for e in events if e['cat'] == 'compute' and e['args']['pass'] == number]
            start, end = min(e['ts'] for e in computing), max(e['ts'] + e['dur'] for e in computing)
            share = lambda kind: sum(max(0, min(end, e['ts'] + e['dur']) - max(start, e['ts'])) for e in events if e['cat'] == kind) / (end - start)
            shares.append({'pass': number, 'seconds': (end - start) / 1e6, 'h2d_busy': share('h2d'), 'compute_busy': share('compute')})
        with open(file, 'rb') as f, gzip.open(file + '.gz', 'wb') as to: shutil.copyfileobj(f, to)
        os.remove(file)
        return shares

    def sanitizer(self):
        tool = shutil.which('compute-sanitizer') or next((p for p in ['/usr/local/cuda/bin/compute-sanitizer'] if os.path.exists(p)), None)
        if not tool or self.results['software_driver']: return self.check('sanitizer', 'compute-sanitizer', None, 'not installed' if not tool else 'the software driver checks by itself')
        # A sanitizer makes kernels tens of times slower: what has tiles, shared memory and tails of every kind.
        tests = ['add::', 'argmax::', 'embed::', 'kv::rows', 'rope::heads', 'activate::lengths', 'rms_norm::heads', 'rms_norm::rows', 'linear::tails', 'gemm::columns', 'gemm::rows', 'attention::splits', 'attention::ragged', 'top_k::routers']
        for check in ['memcheck', 'racecheck', 'initcheck']:
            if self.left() < 15: self.check('sanitizer', check, None, 'no time left'); continue
            command = [tool, '--tool', check, '--error-exitcode', '99', './kernels-test', '--test-threads=1', *tests]
            code, out, seconds = self.run('sanitizer', command, min(120, max(15, self.left() / {'memcheck': 3, 'racecheck': 2, 'initcheck': 1}[check])))
            done = len(re.findall(r'^test \S+ .*\bok$', out, re.M))
            summary = (re.findall(r'(?:ERROR|RACECHECK) SUMMARY: .*', out) or [''])[-1]
            clean = not re.search(r'^========= (Invalid|Error|Uninitialized|.*hazard)', out, re.M)
            self.check('sanitizer', check, clean if code is None else code == 0, f'{done} tests in {seconds:.0f} s' + (', stopped for want of time, nothing found until then' if code is None and clean else '') + (f'; {summary}' if summary else ''), ['compute-sanitizer', *command[1:]])

    def save(self):
        self.results['seconds'] = round(time.monotonic() - self.start, 1)
        with open(self.path('results.json'), 'w') as f: json.dump(self.results, f, indent=1)
        with open(self.path('report.md'), 'w') as f: f.write(report(self.results))

    def all(self):
        why = self.doctor()
        if why:
            self.check('doctor', 'a GPU', False, why, ['./narrows', 'doctor'])
            self.save()
            print(f'no GPU to run on: {why}', file=sys.stderr)
            return 6
        if self.small: print('SMALL: this shows that everything runs; no figure here is a measurement of a GPU', flush=True)
        steps = ['tests', 'goldens', 'bits', 'sanitizer', 'memory', 'pcie', 'bench', 'torch', 'stream', 'wide']
        only = os.environ.get('NARROWS_BUNDLE_ONLY')
        for step in only.split(',') if only else steps:
            self.save()
            if self.left() < 5: self.check(step, 'all of it', None, f'no time left of {self.seconds:.0f} s'); continue
            try: getattr(self, step)()
            except Exception as e: self.check(step, 'all of it', False, f'{type(e).__name__}: {e}')
        with tarfile.open(self.path('logs.tar.gz'), 'w:gz') as tar: tar.add(self.path('logs'), 'logs')
        shutil.rmtree(self.path('logs'))
        if os.path.exists(self.ids): os.remove(self.ids)
        if not os.environ.get('NARROWS_BUNDLE_DIR') and os.path.isdir(self.models) and not os.listdir(self.models): os.rmdir(self.models)
        self.save()
        print(f'{self.path("report.md")} and {self.path("results.json")} in {self.results["seconds"]:.0f} s')
        return int(any(check['status'] == 'FAIL' for check in self.results['checks']))


def report(r):
    """The results as Markdown."""
    doctor = r.get('doctor', {})
    gpu = (doctor.get('devices') or [{}])[0]
    link = next((s['link'] for s in r['streams'] if s['link']), None)
    count = lambda status: sum(check['status'] == status for check in r['checks'])
    text = ['# narrows on a GPU', '']
    if r.get('software_driver'): text += ['**This ran on the software driver, a test instrument. Its times are simulated or those of a CPU, and none is a figure of a GPU.**', '']
    elif r.get('small'): text += ['**This ran in small, to show that everything runs. Its times are no measurements.**', '']
    text += [f'{r["date"]}, {r.get("seconds", 0):.0f} s; build {r["build"]["commit"]}, {r["build"]["rustc"]}', '']
    if gpu.get('name'):
        text += [f'- {gpu["name"]}, compute capability {gpu["compute_capability"]}, {gpu["total_bytes"] / GIB:.1f} GiB, of which the context takes {gpu["context_bytes"] / (1 << 20):.0f} MiB', f'- driver {gpu["driver_release"] or "of unknown release"}, CUDA {gpu["driver_cuda"]}; kernels of CUDA {doctor["kernels"]["toolkit"]} for {", ".join(doctor["kernels"]["architectures"])}',
                 f'- link under load: {link or "not known"}' + ('; at most PCIe {max_generation}.0 x{max_width}'.format(**gpu['link']) if gpu['link'] else ''), f'- {doctor["threads"]} CPU threads, {(doctor["memory_available_bytes"] or 0) / GIB:.0f} GiB of RAM available']
        text += [f'- hint: {hint}' for hint in doctor['hints']] + ['']
    text += [f'{count("ok")} ok, {count("FAIL")} FAIL, {count("skipped")} skipped', '']
    if r['streams']:
        text += ['## Streaming', '', f'The bound is the largest of bytes per pass over the bare copy loop\'s speed, over the disk\'s (as `narrows plan` measures it), and the computing as planned.', '',
                 '| what | s/token | bound | times bound | predicted | h2d in decode, GB/s | bare copies | disk GB/s | peak device | link |', '|---|---|---|---|---|---|---|---|---|---|']
        for s in r['streams']:
            bound = s['bounds_seconds'][s['bound']]
            text.append(f'| {s["what"]} | {s["seconds_per_token"]:.3f} | {bound:.3f} ({s["bound"]}) | {s["seconds_per_token"] / bound:.2f} | {s["predicted_seconds_per_token"]:.3f} | {s["h2d_bytes_per_second_in_decode"] / 1e9:.2f} | {s["bare_h2d_bytes_per_second"] / 1e9:.2f} | {s["disk"]["bytes_per_second"] / 1e9:.2f} | {s["peak_device_bytes"] / GIB:.3f} GiB | {s["link"] or "-"} |')
        for s in r['streams']:
            for p in s.get('trace') or []: text += ['', f'Trace, pass {p["pass"]} of {p["seconds"]:.3f} s: the link copies {p["h2d_busy"]:.1%} of it, the device holds tiles {p["compute_busy"]:.1%}.']
        text.append('')
    text += ['## Checks', '', '| | step | what | |', '|---|---|---|---|']
    cell = lambda x: str(x).replace('|', '\\|').replace('\n', ' ')
    text += [f'| {c["status"]} | {c["step"]} | {cell(c["check"])} | {cell(c["detail"])} |' for c in r['checks']]
    for record in r.get('bench', []):
        giga = lambda per_second: f'{per_second / 1e9:.1f}'
        text += ['', f'## Kernels: {" ".join(record["command"].split(" ")[3:])}', '']
        text += [f'- device memory, {e["test"]}: {giga(e["bytes_per_second"])} GB/s' for e in record['results'] if e['bench'] == 'device']
        text += [f'- multiply-adds in registers, {e["encoding"]} ({e["isa"]}): {e["flops_per_second"] / 1e12:.1f} TFLOP/s' for e in record['results'] if e['bench'] == 'flops']
        text += [f'- note: {note}' for note in record.get('notes', [])]
        text += ['', 'Targets, of the roof: bf16 products of one row 85 %, attention of one row 70 %, rms_norm, rope and swiglu of many rows 80 %; products of 512 rows half of cuBLAS (which writes bf16 where ours writes float32), prefill attention at most twice PyTorch\'s time.', '',
                 '| operation | encoding | shape | rows | us | GB/s | TFLOP/s | of the roof |', '|---|---|---|---|---|---|---|---|']
        for e in record['results']:
            if e['bench'] == 'kernel': text.append(f'| {e["operation"]} | {e["encoding"]} | {" x ".join(map(str, e["shape"]))} | {e["rows"]} | {e["seconds"] * 1e6:.2f} | {giga(e["bytes_per_second"])} | {e["bytes_per_second"] * e["flops_per_byte"] / 1e12:.2f} | {e["bytes_per_second"] / e["roof_bytes_per_second"]:.1%} |')
    if r.get('torch'): text += ['', '## PyTorch, the measuring stick', '', '```json', json.dumps(r['torch'], indent=1), '```']
    text += ['', '## Commands', '', 'In the bundle\'s folder:', '', '```sh'] + list(dict.fromkeys(c['command'] for c in r['checks'] if c['command'])) + ['```', '']
    return '\n'.join(text)


if __name__ == '__main__':
    if sys.argv[1:] == ['--torch']: torch_stick()
    else: sys.exit(Bundle(sys.argv[1] if len(sys.argv) > 1 else 'out').all())
