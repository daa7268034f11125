//! Event logs, of the firmware (the host's) and of run time: read to their end or refused, and an event reads back as written.
#![no_main]

use kata_cc_attester::measure::{Event, tcg};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for event in tcg::events(data).flatten() {
        if let Some(event) = Event::of(&event) {
            assert_eq!(Event::parse(&event.text()), Ok(event));
        }
    }
    let Some(used) = tcg::used_length(data) else { return };
    let before = tcg::replay(data, 4).expect("it was read to its end");
    assert_eq!(tcg::replay(&data[..used], 4), Ok(before), "what follows is filling");
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(event) = Event::parse(text)
    {
        let (entry, _) = event.entry(4);
        let log = [tcg::header(), entry].concat();
        let read: Vec<_> = tcg::events(&log).flatten().filter_map(|e| Event::of(&e)).collect();
        assert_eq!(read, [event]);
    }
});
