//! `pipeline` of tests/support/fuzzing.rs under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vdnn_tests::fuzzing::pipeline(data));
