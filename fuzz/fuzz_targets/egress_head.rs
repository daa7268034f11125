//! Request heads that a guest sends to the egress proxy: one request goes out, to the host that was checked.
#![no_main]

use kata_cc_sandbox::egress::{AllowList, Request, parse_head};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let allow =
        AllowList::parse(&["kbs:8080".to_owned(), "*:443".to_owned()]).expect("entries are well-formed");
    match parse_head(data) {
        Ok(Request::Connect { host, port }) => drop(allow.allows(&host, port)),
        Ok(Request::Forward { host, port, head }) => {
            let _ = allow.allows(&host, port);
            let text = std::str::from_utf8(&head).expect("what is passed on is text");
            // The head ends once, at its end: nothing smuggles a second request to the same host.
            assert_eq!(text.find("\r\n\r\n"), Some(text.len() - 4), "{text:?}");
            // Whatever the target reads as the end of a line, there is one request line and no folded one.
            assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']), "{text:?}");
        }
        Err(_) => {}
    }
});
