#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    malai_protocol_fuzz::ticket(data);
});
