// The emulated processor: what instrumented kernels call for every access, and the collective
// operations of a warp. It is compiled without instrumentation and linked into every library of
// kernels, so that the calls are direct.
#include "machine.h"

#include <stdlib.h>
#include <string.h>

#include "collectives.h"

#define HIDDEN __attribute__((visibility("hidden")))

namespace softgpu {

HIDDEN Machine* machine;

// For messages: the call of the kernel that leads to what is noted.
#define NOTE_CALLER() (machine->pc = uintptr_t(__builtin_return_address(0)))

namespace {

// Marks the granules of an access and remembers which chunks a kernel touched.
inline void mark(uint8_t* map, uint64_t offset) {
    uint64_t granule = offset >> 4;
    uint8_t bit = uint8_t(1u << (granule & 7));
    uint8_t& byte = map[granule >> 3];
    if (byte & bit) return;
    byte |= bit;
    Machine* m = machine;
    uint64_t chunk = offset >> 16;
    if (!m->chunk_seen[chunk]) {
        m->chunk_seen[chunk] = 1;
        m->chunks[m->chunk_count++] = uint32_t(chunk);
    }
}

inline bool all_written(const uint8_t* written, uint64_t offset, uint32_t bytes) {
    uint32_t bits;
    memcpy(&bits, written + (offset >> 3), 4);
    uint32_t mask = ((1u << bytes) - 1) << (offset & 7);
    return (bits & mask) == mask;
}

inline bool inside(const SharedRange& range, uintptr_t address) {
    return address - range.base < range.bytes;
}

bool ordered_in_warp(uint32_t thread, uint32_t interval) {
    Machine* m = machine;
    return thread >> 5 == m->thread >> 5 && interval != m->warp_interval;
}

void shared_read(Cell& cell, uintptr_t address, uint32_t bytes, uint32_t byte_mask) {
    Machine* m = machine;
    bool stale = int32_t(cell.write_interval - m->block_interval) < 0;
    if (stale || (cell.write_bytes & byte_mask) != byte_mask) {
        m->race(address, bytes, READ, nullptr);
        return;
    }
    if (cell.write_flags & WRITE_IN_FLIGHT) m->race(address, bytes, READ, &cell);
    if (cell.write_interval == m->interval && cell.write_thread != m->thread &&
        !(cell.write_flags & WRITE_MIXED) && (cell.write_bytes >> 4 & byte_mask) &&
        !ordered_in_warp(cell.write_thread, cell.write_warp_interval))
        m->race(address, bytes, READ, &cell);
    if (cell.read_interval != m->interval) {
        cell.read_interval = m->interval;
        cell.read_flags = 0;
    } else if (cell.read_thread != m->thread) {
        if (cell.read_thread >> 5 != m->thread >> 5)
            cell.read_flags |= READ_BY_WARPS;
        else if (cell.read_warp_interval == m->warp_interval)
            cell.read_flags |= READ_BY_LANES;
        else
            cell.read_flags &= uint8_t(~READ_BY_LANES);
    } else if (cell.read_warp_interval != m->warp_interval) {
        cell.read_flags &= uint8_t(~READ_BY_LANES);
    }
    cell.read_thread = uint16_t(m->thread);
    cell.read_warp_interval = m->warp_interval;
}

void shared_write(Cell& cell, uintptr_t address, uint32_t bytes, uint32_t byte_mask, uint32_t access) {
    Machine* m = machine;
    bool stale = int32_t(cell.write_interval - m->block_interval) < 0;
    if (stale) {
        cell.write_bytes = 0;
        cell.write_flags = 0;
    }
    uint8_t flag = access == ATOMIC ? WRITE_ATOMIC : access == ASYNC_WRITE ? WRITE_IN_FLIGHT : 0;
    bool landing = access == ASYNC_LAND;
    if (!landing && cell.write_flags & WRITE_IN_FLIGHT && !stale) m->race(address, bytes, access, &cell);
    if (access == ATOMIC && (stale || (cell.write_bytes & byte_mask) != byte_mask))
        m->race(address, bytes, READ, nullptr);
    bool both_atomic = access == ATOMIC && cell.write_flags & WRITE_ATOMIC;
    bool mixed = false;
    if (!stale && cell.write_interval == m->interval && cell.write_thread != m->thread && !both_atomic &&
        !ordered_in_warp(cell.write_thread, cell.write_warp_interval)) {
        if (cell.write_flags & WRITE_MIXED || !(cell.write_bytes >> 4 & byte_mask))
            mixed = true;  // threads that write different bytes of one word do not race
        else
            m->race(address, bytes, access, &cell);
    }
    if (!landing && cell.read_interval == m->interval && !mixed && byte_mask == 15) {
        bool race = cell.read_flags & READ_BY_WARPS;
        if (cell.read_thread != m->thread)
            race |= !ordered_in_warp(cell.read_thread, cell.read_warp_interval);
        else
            race |= cell.read_flags & READ_BY_LANES && cell.read_warp_interval == m->warp_interval;
        if (race) m->race(address, bytes, access, &cell);
    }
    bool same = cell.write_interval == m->interval && cell.write_thread == m->thread;
    uint32_t own = same || mixed ? (cell.write_bytes >> 4) | byte_mask : byte_mask;
    cell.write_bytes = uint8_t((cell.write_bytes & 15) | byte_mask | own << 4);
    cell.write_flags = uint8_t((mixed ? WRITE_MIXED : 0) | flag);
    cell.write_interval = m->interval;
    cell.write_thread = uint16_t(m->thread);
    cell.write_warp_interval = m->warp_interval;
}

void shared_access(const SharedRange& range, uintptr_t address, uint32_t bytes, uint32_t access) {
    uint64_t offset = address - range.base;
    if (offset + bytes > range.bytes) {
        machine->check(address, bytes, access);
        return;
    }
    uint64_t end = offset + bytes;
    for (uint64_t word = offset >> 2; word << 2 < end; ++word) {
        uint64_t first = word << 2 < offset ? offset - (word << 2) : 0;
        uint64_t last = (word << 2) + 4 > end ? end - (word << 2) : 4;
        uint32_t mask = (0xfu >> (4 - last)) & (0xfu << first);
        if (access == READ)
            shared_read(range.cells[word], address, bytes, mask);
        else
            shared_write(range.cells[word], address, bytes, mask, access);
    }
}

template <uint32_t BYTES>
__attribute__((always_inline)) inline void read(uintptr_t address) {
    Machine* m = machine;
    uint64_t offset = address - m->device_base;
    if (__builtin_expect(offset < m->device_bytes, 1)) {
        if (__builtin_expect(address % BYTES != 0 || !all_written(m->written, offset, BYTES), 0)) {
            NOTE_CALLER();
            if (address % BYTES != 0) m->misaligned(address, BYTES, READ);
            m->check(address, BYTES, READ);
        }
        mark(m->read_map, offset);
        return;
    }
    if (address - m->stack_base < m->stack_bytes) return;
    NOTE_CALLER();
    if (address % BYTES != 0) m->misaligned(address, BYTES, READ);
    if (inside(m->dynamic_shared, address))
        shared_access(m->dynamic_shared, address, BYTES, READ);
    else if (inside(m->static_shared, address))
        shared_access(m->static_shared, address, BYTES, READ);
    else
        m->check(address, BYTES, READ);
}

template <uint32_t BYTES>
__attribute__((always_inline)) inline void write(uintptr_t address) {
    Machine* m = machine;
    uint64_t offset = address - m->device_base;
    if (offset < m->device_bytes) {
        if (address % BYTES != 0 || !all_written(m->written, offset, BYTES)) {
            NOTE_CALLER();
            if (address % BYTES != 0) m->misaligned(address, BYTES, WRITE);
            m->check(address, BYTES, WRITE);
        }
        mark(m->write_map, offset);
        return;
    }
    if (address - m->stack_base < m->stack_bytes) return;
    NOTE_CALLER();
    if (address % BYTES != 0) m->misaligned(address, BYTES, WRITE);
    if (inside(m->dynamic_shared, address))
        shared_access(m->dynamic_shared, address, BYTES, WRITE);
    else if (inside(m->static_shared, address))
        shared_access(m->static_shared, address, BYTES, WRITE);
    else
        m->check(address, BYTES, WRITE);
}

void range(uintptr_t address, uint64_t bytes, uint32_t access) {
    Machine* m = machine;
    if (bytes == 0 || address - m->stack_base < m->stack_bytes) return;
    uint64_t offset = address - m->device_base;
    if (offset < m->device_bytes) {
        bool known = bytes <= 16 && all_written(m->written, offset, uint32_t(bytes));
        if (!known) m->check(address, bytes, access == READ ? READ : WRITE);
        if (access != WRITE)
            for (uint64_t at = offset & ~15ull; at < offset + bytes; at += 16) mark(m->read_map, at);
        if (access != READ)
            for (uint64_t at = offset & ~15ull; at < offset + bytes; at += 16) mark(m->write_map, at);
    } else if (inside(m->dynamic_shared, address)) {
        shared_access(m->dynamic_shared, address, uint32_t(bytes), access);
    } else if (inside(m->static_shared, address)) {
        shared_access(m->static_shared, address, uint32_t(bytes), access);
    } else {
        m->check(address, bytes, access);
    }
}

}  // namespace

HIDDEN void note_caller(void* pc) { machine->pc = uintptr_t(pc); }

HIDDEN void atomic_access(const void* address, uint32_t bytes) {
    uintptr_t at = uintptr_t(address);
    if (at % bytes != 0) machine->misaligned(at, bytes, ATOMIC);
    uint64_t offset = at - machine->device_base;
    if (offset < machine->device_bytes && !all_written(machine->written, offset, bytes))
        machine->check(at, bytes, READ);
    range(at, bytes, ATOMIC);
}

HIDDEN void read_access(const void* address, uint32_t bytes) { range(uintptr_t(address), bytes, READ); }

HIDDEN void* dynamic_shared() { return reinterpret_cast<void*>(machine->dynamic_shared.base); }

HIDDEN uint32_t barrier(const char* file, uint32_t line, uint32_t reduce, uint32_t predicate) {
    return machine->barrier(file, line, reduce, predicate);
}

HIDDEN void collective(uint32_t operation, uint32_t mask, void* lane, Perform perform) {
    machine->collective(operation, mask, lane, perform);
}

HIDDEN void trap(const char* what, const char* file, uint32_t line) {
    machine->trap(what, file, line);
    __builtin_unreachable();  // the driver ends the process
}

HIDDEN uint32_t lane() { return machine->thread & 31; }

// --- cp.async -------------------------------------------------------------------------------
// A thread's copies land when it waits for their group. Until then their target counts as in flight, so
// that whoever touches it is caught, wherever the bytes are.

namespace {

struct Pending {
    void* shared;
    uint8_t bytes[16];
    uint32_t group;
};

struct Asynchronous {
    uint32_t interval;
    uint32_t committed;
    uint32_t count;
    Pending copies[256];
};

// On the heap: the zeroed part of a library is what its kernels share.
Asynchronous* asynchronous;

Asynchronous& mine() {
    if (!asynchronous) {
        asynchronous = static_cast<Asynchronous*>(calloc(1024, sizeof(Asynchronous)));
        if (!asynchronous) abort();
    }
    Asynchronous& state = asynchronous[machine->thread];
    if (state.interval != machine->block_interval) {
        state.interval = machine->block_interval;
        state.committed = 0;
        state.count = 0;
    }
    return state;
}

void land(Pending& copy) {
    range(uintptr_t(copy.shared), 16, ASYNC_LAND);
    memcpy(copy.shared, copy.bytes, 16);
}

}  // namespace

HIDDEN void cp_async_16(void* shared, const void* global, int src_bytes) {
    Machine* m = machine;
    NOTE_CALLER();
    if (uintptr_t(shared) % 16 != 0) m->misaligned(uintptr_t(shared), 16, WRITE);
    if (src_bytes < 0 || src_bytes > 16) m->trap("cp.async of more than 16 bytes", "", 0);
    if (src_bytes > 0) {
        if (uintptr_t(global) % 16 != 0) m->misaligned(uintptr_t(global), 16, READ);
        range(uintptr_t(global), uint64_t(src_bytes), READ);
    }
    if (!inside(m->dynamic_shared, uintptr_t(shared)) && !inside(m->static_shared, uintptr_t(shared)))
        m->trap("cp.async to an address outside shared memory", "", 0);
    range(uintptr_t(shared), 16, ASYNC_WRITE);
    Asynchronous& state = mine();
    if (state.count == sizeof(state.copies) / sizeof(state.copies[0]))
        m->trap("more than 256 cp.async of one thread in flight", "", 0);
    Pending& copy = state.copies[state.count++];
    copy.shared = shared;
    copy.group = state.committed;
    memset(copy.bytes, 0, 16);
    memcpy(copy.bytes, global, size_t(src_bytes));
}

HIDDEN void cp_async_commit() { mine().committed++; }

HIDDEN void cp_async_wait_group(uint32_t keep) {
    NOTE_CALLER();
    Asynchronous& state = mine();
    uint32_t left = 0;
    for (uint32_t i = 0; i < state.count; ++i) {
        Pending copy = state.copies[i];
        if (copy.group + keep < state.committed)
            land(copy);
        else
            state.copies[left++] = copy;
    }
    state.count = left;
}

}  // namespace softgpu

// --- what the compiler's instrumentation calls ------------------------------------------------

using namespace softgpu;

extern "C" {

#define ACCESSES(N)                                                                       \
    HIDDEN void __tsan_read##N(void* p) { read<N>(uintptr_t(p)); }                        \
    HIDDEN void __tsan_write##N(void* p) { write<N>(uintptr_t(p)); }                      \
    HIDDEN void __tsan_read##N##_pc(void* p, void*) { read<N>(uintptr_t(p)); }            \
    HIDDEN void __tsan_write##N##_pc(void* p, void*) { write<N>(uintptr_t(p)); }          \
    HIDDEN void __tsan_volatile_read##N(void* p) { read<N>(uintptr_t(p)); }               \
    HIDDEN void __tsan_volatile_write##N(void* p) { write<N>(uintptr_t(p)); }             \
    HIDDEN void __tsan_unaligned_read##N(void* p) { NOTE_CALLER(); range(uintptr_t(p), N, READ); } \
    HIDDEN void __tsan_unaligned_write##N(void* p) { NOTE_CALLER(); range(uintptr_t(p), N, WRITE); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

HIDDEN void __tsan_read_range(void* p, size_t n) { NOTE_CALLER(); range(uintptr_t(p), n, READ); }
HIDDEN void __tsan_write_range(void* p, size_t n) { NOTE_CALLER(); range(uintptr_t(p), n, WRITE); }
HIDDEN void __tsan_func_entry(void*) {}
HIDDEN void __tsan_func_exit() {}
HIDDEN void __tsan_init() {}
HIDDEN void __tsan_vptr_update(void**, void*) {}
HIDDEN void __tsan_vptr_read(void**) {}

// Kernels that copy through these would else escape the checks: the compiler does not instrument
// what it leaves as a call or expands by itself.
HIDDEN void* softgpu_memcpy(void* to, const void* from, size_t bytes) {
    NOTE_CALLER();
    range(uintptr_t(from), bytes, READ);
    range(uintptr_t(to), bytes, WRITE);
    return memmove(to, from, bytes);
}

HIDDEN void* softgpu_memset(void* to, int value, size_t bytes) {
    NOTE_CALLER();
    range(uintptr_t(to), bytes, WRITE);
    return memset(to, value, bytes);
}

HIDDEN uint32_t softgpu_thread_idx(int dim) { return machine->thread_idx[dim]; }
HIDDEN uint32_t softgpu_block_idx(int dim) { return machine->block_idx[dim]; }
HIDDEN uint32_t softgpu_block_dim(int dim) { return machine->block_dim[dim]; }
HIDDEN uint32_t softgpu_grid_dim(int dim) { return machine->grid_dim[dim]; }

extern HIDDEN char __ehdr_start[], __bss_start[], _end[];

// `__shared__` variables have no initialisers, so they lie in the zeroed part of the library.
__attribute__((visibility("default"))) void softgpu_attach(Machine* with, uintptr_t* bounds) {
    machine = with;
    bounds[0] = uintptr_t(__ehdr_start);
    bounds[1] = uintptr_t(__bss_start);
    bounds[2] = uintptr_t(_end);
}

}  // extern "C"
