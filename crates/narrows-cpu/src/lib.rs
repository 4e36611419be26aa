//! The operations of a decoder, computed on the CPU.
