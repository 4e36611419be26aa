"""What the peers share: token ids from a safetensors file, and what the kernel counted for this process."""
import json, struct


def read_ids(path):
    """The first row of `input_ids`, i64 [batch, positions]."""
    with open(path, 'rb') as f:
        (n,) = struct.unpack('<Q', f.read(8))
        header = json.loads(f.read(n))['input_ids']
        assert header['dtype'] == 'I64' and len(header['shape']) == 2, 'input_ids is i64 [batch, positions]'
        begin, _ = header['data_offsets']
        f.seek(8 + n + begin)
        columns = header['shape'][1]
        return list(struct.unpack('<%dq' % columns, f.read(8 * columns)))


def write_ids(path, ids):
    data = struct.pack('<%dq' % len(ids), *ids)
    header = json.dumps({'input_ids': {'dtype': 'I64', 'shape': [1, len(ids)], 'data_offsets': [0, len(data)]}}).encode()
    header += b' ' * (-len(header) % 8)
    with open(path, 'wb') as f:
        f.write(struct.pack('<Q', len(header)) + header + data)


def bytes_read():
    """Bytes that this process had fetched from a disk so far; its read-ahead and page faults count, the page cache does not."""
    with open('/proc/self/io') as f:
        return next(int(line.split()[1]) for line in f if line.startswith('read_bytes'))


def answer(tokens, marks, **more):
    """The JSON that run.py reads. `marks` are (seconds, bytes read) when each new token was known, so the passes between
    the first and the last are decode and nothing else."""
    (t0, b0), (t1, b1) = marks[0], marks[-1]
    passes = len(marks) - 1
    print(json.dumps(dict(tokens=tokens, passes=passes, decode_seconds=t1 - t0, seconds_per_token=(t1 - t0) / passes,
                          decode_bytes_read=b1 - b0, steps=[round(b[0] - a[0], 4) for a, b in zip(marks, marks[1:])], **more)))
