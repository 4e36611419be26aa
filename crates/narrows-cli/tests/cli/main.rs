//! The program as a user meets it: what it prints where, exit codes, bad input, interrupted packs.

mod bad_input;
mod harness;
mod pack;
mod run;
