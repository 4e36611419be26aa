//! Entry points: streams, events, host functions.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Once, PoisonError};
use std::time::Duration;

use super::api_context::{current_device, put};
use super::code::{Code, Outcome};
use super::queue::{Captured, Event, Goal, Stream, Work};
use super::state::State;
use super::{PROGRESS, call, call_until, lock};

/// Device memory that a stream takes. A driver takes some, and keeps it for the next stream when one has gone.
const STREAM_BYTES: u64 = 64 << 10;

/// Flag of an event: it measures no time.
const DISABLE_TIMING: u32 = 2;

unsafe fn create(to: *mut *mut c_void, flags: c_uint, priority: c_int) -> u32 {
    call(|state| {
        let device = current_device(state)?;
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        let live = state.streams.iter().filter(|stream| !stream.destroyed).count();
        if live > state.devices[device].streams {
            state.charge(device, STREAM_BYTES)?;
            state.devices[device].streams = live;
        }
        let handle = state.handle();
        let mut stream = Stream::new(handle);
        stream.flags = flags;
        stream.priority = priority.clamp(-5, 0);
        state.streams.push(stream);
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, handle as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(to: *mut *mut c_void, flags: c_uint) -> u32 {
    // SAFETY: the same contract.
    unsafe { create(to, flags, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreateWithPriority(to: *mut *mut c_void, flags: c_uint, priority: c_int) -> u32 {
    // SAFETY: the same contract.
    unsafe { create(to, flags, priority) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetPriority(stream: *mut c_void, to: *mut c_int) -> u32 {
    call(|state| {
        let stream = state.stream(stream)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, state.streams[stream].priority) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetFlags(stream: *mut c_void, to: *mut c_uint) -> u32 {
    call(|state| {
        let stream = state.stream(stream)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, state.streams[stream].flags) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamIsCapturing(stream: *mut c_void, to: *mut c_uint) -> u32 {
    call(|state| {
        state.stream(stream)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, 0) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> u32 {
    call(|state| match state.stream(stream)? {
        0 => Err(Code::INVALID_HANDLE),
        stream => {
            // What is in its queue still runs.
            state.streams[stream].destroyed = true;
            Ok(())
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> u32 {
    call_until(
        |state| {
            current_device(state)?;
            Ok(Goal::Stream(state.stream(stream)?))
        },
        |_| Ok(()),
    )
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: *mut c_void) -> u32 {
    call(|state| {
        let stream = state.stream(stream)?;
        let target = state.capture(stream);
        state.poll(&target)
    })
}

fn event(state: &State, handle: *mut c_void) -> Outcome<&Event> {
    state.events.get(&(handle as u64)).ok_or(Code::INVALID_HANDLE)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: *mut c_void, handle: *mut c_void, flags: c_uint) -> u32 {
    call(|state| {
        let stream = state.stream(stream)?;
        let captured = event(state, handle)?.captured.clone();
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        // Waiting for an event that was never recorded is no wait at all.
        if let Some(target) = captured {
            state.push_wait(stream, &target);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(to: *mut *mut c_void, flags: c_uint) -> u32 {
    call(|state| {
        current_device(state)?;
        if flags > 7 {
            return Err(Code::INVALID_VALUE);
        }
        let handle = state.handle();
        state.events.insert(handle, Event { flags, captured: None });
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, handle as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(handle: *mut c_void) -> u32 {
    call(|state| state.events.remove(&(handle as u64)).map(|_| ()).ok_or(Code::INVALID_HANDLE))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(handle: *mut c_void, stream: *mut c_void) -> u32 {
    call(|state| {
        event(state, handle)?;
        let stream = state.stream(stream)?;
        state.records += 1;
        if state.config.fail_record == Some(state.records) {
            return Err(Code::OUT_OF_MEMORY);
        }
        let captured = state.enqueue(stream, Work::Marker, String::from("event"));
        if let Some(event) = state.events.get_mut(&(handle as u64)) {
            event.captured = Some(captured);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(handle: *mut c_void) -> u32 {
    call(|state| {
        current_device(state)?;
        match event(state, handle)?.captured.clone() {
            Some(target) => state.poll(&target),
            None => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(handle: *mut c_void) -> u32 {
    call_until(|state| Ok(event(state, handle)?.captured.clone().map_or(Goal::Nothing, Goal::At)), |_| Ok(()))
}

fn timed(state: &State, handle: *mut c_void) -> Outcome<Captured> {
    let event = event(state, handle)?;
    if event.flags & DISABLE_TIMING != 0 {
        return Err(Code::INVALID_HANDLE);
    }
    event.captured.clone().ok_or(Code::INVALID_HANDLE)
}

unsafe fn elapsed(to: *mut f32, start: *mut c_void, end: *mut c_void) -> u32 {
    call(|state| {
        let (start, end) = (timed(state, start)?, timed(state, end)?);
        if !state.is_done(&start) || !state.is_done(&end) {
            return Err(Code::NOT_READY);
        }
        // A time is known once everything enqueued before has run.
        let times = loop {
            match (state.timeline.end(start.number), state.timeline.end(end.number)) {
                (Some(start), Some(end)) => break (start, end),
                _ if !state.step_any() => return Err(Code::NOT_READY),
                _ => {}
            }
        };
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, ((times.1 - times.0) * 1e3) as f32) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(to: *mut f32, start: *mut c_void, end: *mut c_void) -> u32 {
    // SAFETY: the same contract.
    unsafe { elapsed(to, start, end) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime_v2(to: *mut f32, start: *mut c_void, end: *mut c_void) -> u32 {
    // SAFETY: the same contract.
    unsafe { elapsed(to, start, end) }
}

/// Calls host functions as they come due. They may wait for the host, so they need a thread of their
/// own; it takes the device forward only while one of them waits for it.
fn call_host_functions() {
    let mut guard = lock();
    loop {
        let due = guard.as_mut().and_then(|state| {
            let due = state.due_host_function();
            if due.is_none() && state.host_functions > 0 {
                state.step_any();
            }
            due
        });
        guard = match due {
            Some((stream, function, data)) => {
                drop(guard);
                // SAFETY: the caller of cuLaunchHostFunc promises a function that takes its data.
                unsafe { function(data as *mut c_void) };
                let mut guard = lock();
                if let Some(state) = guard.as_mut() {
                    state.host_function_returned(stream);
                }
                PROGRESS.notify_all();
                guard
            }
            None => {
                PROGRESS
                    .wait_timeout(guard, Duration::from_millis(1))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchHostFunc(
    stream: *mut c_void,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    data: *mut c_void,
) -> u32 {
    static CALLER: Once = Once::new();
    CALLER.call_once(|| {
        let _ = std::thread::Builder::new().name("softgpu-host".into()).spawn(call_host_functions);
    });
    call(|state| {
        current_device(state)?;
        let stream = state.stream(stream)?;
        let function = function.ok_or(Code::INVALID_VALUE)?;
        state.host_functions += 1;
        let work = Work::HostFunction { function, data: data as usize };
        state.enqueue(stream, work, String::from("host function"));
        PROGRESS.notify_all();
        Ok(())
    })
}
