//! The files of a TLS listener: certificates, key and the clients' authorities, all in one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::server::Tls;

fuzz_target!(|data: &[u8]| {
    if let Err(error) = Tls::of_pem(data) {
        assert!(error.to_string().contains("fuzz.pem"), "an error names the file");
    }
});
