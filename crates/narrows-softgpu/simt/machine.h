// What the driver (Rust, src/driver/machine.rs) and the emulated processor share.
// Both sides declare these structs; a field changes in both files or in neither.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace softgpu {

// What is known of four bytes of shared memory.
struct Cell {
    uint32_t write_interval;
    uint32_t write_warp_interval;
    uint16_t write_thread;
    uint8_t write_flags;
    uint8_t write_bytes;  // low half: written in this block; high half: by the last writer
    uint32_t read_interval;
    uint32_t read_warp_interval;
    uint16_t read_thread;
    uint8_t read_flags;
    uint8_t unused;
};

enum : uint8_t { WRITE_MIXED = 1, WRITE_ATOMIC = 2, WRITE_IN_FLIGHT = 4 };
enum : uint8_t { READ_BY_LANES = 1, READ_BY_WARPS = 2 };

struct SharedRange {
    uintptr_t base;
    uint64_t bytes;
    Cell* cells;
};

enum Access : uint32_t { READ = 0, WRITE = 1, ATOMIC = 2, ASYNC_WRITE = 3, ASYNC_LAND = 4 };

enum Operation : uint32_t { SYNCWARP = 0, SHUFFLE = 1, VOTE = 2, MMA = 3, LDMATRIX = 4 };

typedef void (*Perform)(void* const* lanes, uint32_t mask);

struct Machine {
    uintptr_t device_base;
    uint64_t device_bytes;
    uint8_t* written;     // a bit per byte of device memory
    uint8_t* read_map;    // a bit per 16 bytes: read by the running kernel
    uint8_t* write_map;   // a bit per 16 bytes: written by the running kernel
    uint8_t* chunk_seen;  // a byte per 64 KiB touched by the running kernel
    uint32_t* chunks;     // the indices of these
    uint64_t chunk_count;
    uintptr_t stack_base;
    uint64_t stack_bytes;
    SharedRange dynamic_shared;
    SharedRange static_shared;
    uint32_t interval;        // counts blocks and barriers
    uint32_t block_interval;  // its value when the running block began
    uint32_t warp_interval;   // counts what separates accesses within the running thread's warp
    uint32_t thread;          // linear index within the block
    uintptr_t pc;             // where the kernel called from, when something may be wrong
    uint32_t thread_idx[4];
    uint32_t block_idx[4];
    uint32_t block_dim[4];
    uint32_t grid_dim[4];
    void (*check)(uintptr_t address, uint64_t bytes, uint32_t access);
    void (*race)(uintptr_t address, uint32_t bytes, uint32_t access, const Cell* cell);
    void (*misaligned)(uintptr_t address, uint32_t bytes, uint32_t access);
    uint32_t (*barrier)(const char* file, uint32_t line, uint32_t reduce, uint32_t predicate);
    void (*collective)(uint32_t operation, uint32_t mask, void* lane, Perform perform);
    void (*trap)(const char* what, const char* file, uint32_t line);
};

// One kernel of a library of kernels.
struct Entry {
    const char* name;
    void (*call)(const void* params);
    uint32_t param_bytes;
    uint32_t max_threads;
};

}  // namespace softgpu
