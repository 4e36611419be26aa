// Warp collectives, with the fragment layouts of the PTX ISA manual (mma.m16n8k8, mma.m16n8k16,
// ldmatrix .m8n8 .b16). Compiled without instrumentation.
#include "collectives.h"

#include <string.h>

namespace softgpu {

extern Machine* machine;

namespace {

const uint32_t FULL = 0xffffffffu;

float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Exact for every half, subnormals included.
float from_half(uint32_t half) {
    uint32_t sign = (half & 0x8000u) << 16;
    uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    return from_bits(sign) + from_bits(magnitude << 13) * (sign ? -0x1p112f : 0x1p112f);
}

float from_bfloat(uint32_t bits) { return from_bits(bits << 16); }

struct Shuffle {
    uint32_t value;
    uint32_t source;
    uint32_t result;
};

void perform_shuffle(void* const* lanes, uint32_t mask) {
    for (uint32_t i = 0; i < 32; ++i) {
        if (!(mask >> i & 1)) continue;
        Shuffle* to = static_cast<Shuffle*>(lanes[i]);
        if (!(mask >> to->source & 1)) trap("a shuffle reads a lane that its mask does not name", "", 0);
        to->result = static_cast<Shuffle*>(lanes[to->source])->value;
    }
}

struct Ballot {
    uint32_t result;
};

void perform_ballot(void* const* lanes, uint32_t mask) {
    uint32_t result = 0;
    for (uint32_t i = 0; i < 32; ++i)
        if (mask >> i & 1) result |= static_cast<Ballot*>(lanes[i])->result << i;
    for (uint32_t i = 0; i < 32; ++i)
        if (mask >> i & 1) static_cast<Ballot*>(lanes[i])->result = result;
}

void perform_nothing(void* const*, uint32_t) {}

struct Mma {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
    const float* c;
};

template <int K, float (*VALUE)(uint32_t)>
void perform_mma(void* const* lanes, uint32_t) {
    float a[16][K], b[K][8], d[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const Mma& from = *static_cast<const Mma*>(lanes[lane]);
        int group = lane >> 2, pair = (lane & 3) * 2;
        for (int part = 0; part < K / 8; ++part) {
            for (int half = 0; half < 2; ++half) {
                uint32_t rows = from.a[part * 2 + half];
                a[group + half * 8][part * 8 + pair] = VALUE(rows & 0xffffu);
                a[group + half * 8][part * 8 + pair + 1] = VALUE(rows >> 16);
            }
            b[part * 8 + pair][group] = VALUE(from.b[part] & 0xffffu);
            b[part * 8 + pair + 1][group] = VALUE(from.b[part] >> 16);
        }
        for (int i = 0; i < 4; ++i) d[group + (i >> 1) * 8][pair + (i & 1)] = from.c[i];
    }
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < K; ++k)
            for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < 32; ++lane) {
        const Mma& to = *static_cast<const Mma*>(lanes[lane]);
        int group = lane >> 2, pair = (lane & 3) * 2;
        for (int i = 0; i < 4; ++i) to.d[i] = d[group + (i >> 1) * 8][pair + (i & 1)];
    }
}

struct Ldmatrix {
    uint32_t* r;
    const uint16_t* row;
};

template <int MATRICES, bool TRANSPOSED>
void perform_ldmatrix(void* const* lanes, uint32_t) {
    for (int lane = 0; lane < 32; ++lane) {
        const Ldmatrix& to = *static_cast<const Ldmatrix*>(lanes[lane]);
        int group = lane >> 2, pair = (lane & 3) * 2;
        for (int m = 0; m < MATRICES; ++m) {
            auto at = [&](int row, int column) -> uint32_t {
                return static_cast<const Ldmatrix*>(lanes[m * 8 + row])->row[column];
            };
            to.r[m] = TRANSPOSED ? at(pair, group) | at(pair + 1, group) << 16
                                 : at(group, pair) | at(group, pair + 1) << 16;
        }
    }
}

template <int MATRICES, bool TRANSPOSED>
void ldmatrix(uint32_t* r, const void* row) {
    if (lane() < MATRICES * 8) {
        if (uintptr_t(row) % 16 != 0) machine->misaligned(uintptr_t(row), 16, READ);
        bool shared = uintptr_t(row) - machine->dynamic_shared.base < machine->dynamic_shared.bytes ||
                      uintptr_t(row) - machine->static_shared.base < machine->static_shared.bytes;
        if (!shared) trap("ldmatrix of an address outside shared memory", "", 0);
        read_access(row, 16);
    }
    Ldmatrix mine = {r, static_cast<const uint16_t*>(row)};
    collective(LDMATRIX, FULL, &mine, perform_ldmatrix<MATRICES, TRANSPOSED>);
}

}  // namespace

uint32_t shuffle(uint32_t mask, uint32_t value, uint32_t source) {
    Shuffle mine = {value, source & 31, 0};
    collective(SHUFFLE, mask, &mine, perform_shuffle);
    return mine.result;
}

uint32_t ballot(uint32_t mask, bool predicate) {
    Ballot mine = {predicate ? 1u : 0u};
    collective(VOTE, mask, &mine, perform_ballot);
    return mine.result;
}

void syncwarp(uint32_t mask) { collective(SYNCWARP, mask, nullptr, perform_nothing); }

void mma_m16n8k8_f16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1], const float (&c)[4]) {
    Mma mine = {d, a, b, c};
    collective(MMA, FULL, &mine, perform_mma<8, from_half>);
}

void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
    Mma mine = {d, a, b, c};
    collective(MMA, FULL, &mine, perform_mma<16, from_half>);
}

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
    Mma mine = {d, a, b, c};
    collective(MMA, FULL, &mine, perform_mma<16, from_bfloat>);
}

void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    note_caller(__builtin_return_address(0));
    ldmatrix<4, false>(r, row);
}
void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
    note_caller(__builtin_return_address(0));
    ldmatrix<2, false>(r, row);
}
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    note_caller(__builtin_return_address(0));
    ldmatrix<4, true>(r, row);
}
void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
    note_caller(__builtin_return_address(0));
    ldmatrix<2, true>(r, row);
}

}  // namespace softgpu

// --- atomics: blocks run one after another, so these need only be seen as atomic -----------------

namespace softgpu {

#define ATOMIC_OP(NAME, T, NEXT)         \
    template <>                          \
    T NAME<T>(T * at, T value) {         \
        note_caller(__builtin_return_address(0)); \
        atomic_access(at, sizeof(T));    \
        T old = *at;                     \
        *at = NEXT;                      \
        return old;                      \
    }
#define ATOMIC_COMPARE(T)                             \
    template <>                                       \
    T atomic_compare<T>(T * at, T expected, T value) { \
        note_caller(__builtin_return_address(0)); \
        atomic_access(at, sizeof(T));                 \
        T old = *at;                                  \
        if (old == expected) *at = value;             \
        return old;                                   \
    }
template <class T> T atomic_add(T* at, T value);
template <class T> T atomic_max(T* at, T value);
template <class T> T atomic_min(T* at, T value);
template <class T> T atomic_exchange(T* at, T value);
template <class T> T atomic_compare(T* at, T expected, T value);
template <class T> T atomic_and(T* at, T value);
template <class T> T atomic_or(T* at, T value);
template <class T> T atomic_xor(T* at, T value);

#define ATOMIC_NUMBER(T)                             \
    ATOMIC_OP(atomic_add, T, static_cast<T>(old + value))         \
    ATOMIC_OP(atomic_max, T, old < value ? value : old) \
    ATOMIC_OP(atomic_min, T, value < old ? value : old) \
    ATOMIC_OP(atomic_exchange, T, value)
#define ATOMIC_INTEGER(T)                  \
    ATOMIC_NUMBER(T)                       \
    ATOMIC_OP(atomic_and, T, old & value)  \
    ATOMIC_OP(atomic_or, T, old | value)   \
    ATOMIC_OP(atomic_xor, T, old ^ value)  \
    ATOMIC_COMPARE(T)
ATOMIC_INTEGER(int)
ATOMIC_INTEGER(unsigned)
ATOMIC_INTEGER(unsigned long)
ATOMIC_INTEGER(unsigned long long)
ATOMIC_NUMBER(float)
ATOMIC_NUMBER(double)

}  // namespace softgpu
