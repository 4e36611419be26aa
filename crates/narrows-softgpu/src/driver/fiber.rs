//! Switching between stacks.
//!
//! A switch leads straight from one fiber to the next, by a call and a return. Where all lanes of a warp
//! wait in the same place, the processor then predicts every return right; a library whose coroutines
//! go by way of their parent took three times as long for a shuffle.

use std::arch::naked_asm;

/// Saves the running fiber's registers on its stack and its stack pointer in `save`, and goes on where the
/// fiber of stack pointer `to` left off.
///
/// # Safety
/// `save` is valid for a write, and `to` came from [`prepare`] or was saved by this function and not gone
/// on with since.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(save: *mut usize, to: usize) {
    // What the System V ABI lets a callee not change. Nothing here changes MXCSR or the x87 control word.
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// As on x86-64.
///
/// # Safety
/// As on x86-64.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(save: *mut usize, to: usize) {
    // What AAPCS64 lets a callee not change.
    naked_asm!(
        "stp x19, x20, [sp, #-160]!",
        "stp x21, x22, [sp, #16]",
        "stp x23, x24, [sp, #32]",
        "stp x25, x26, [sp, #48]",
        "stp x27, x28, [sp, #64]",
        "stp x29, x30, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mov x9, sp",
        "str x9, [x0]",
        "mov sp, x1",
        "ldp x21, x22, [sp, #16]",
        "ldp x23, x24, [sp, #32]",
        "ldp x25, x26, [sp, #48]",
        "ldp x27, x28, [sp, #64]",
        "ldp x29, x30, [sp, #80]",
        "ldp d8, d9, [sp, #96]",
        "ldp d10, d11, [sp, #112]",
        "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "ldp x19, x20, [sp], #160",
        "ret",
    )
}

/// The stack pointer of a fiber that begins with `entry` when it is switched to.
///
/// # Safety
/// `top` is the end of a stack of at least 4 KiB that nothing else uses, a multiple of 16.
pub(crate) unsafe fn prepare(top: usize, entry: extern "C" fn() -> !) -> usize {
    #[cfg(target_arch = "x86_64")]
    let (frame, at) = (top - 64, 6);
    #[cfg(target_arch = "aarch64")]
    let (frame, at) = (top - 160, 11);
    // SAFETY: a fresh mapping is zeroed, so all other registers begin as 0: the frame pointer too, which
    // ends a walk along the frames.
    unsafe { (frame as *mut usize).add(at).write(entry as usize) };
    frame
}
