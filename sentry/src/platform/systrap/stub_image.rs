//! The stub's code ([`super::stub_code`]) as bytes.

unsafe extern "C" {
    static kata_cc_stub_begin: u8;
    static kata_cc_stub_start: u8;
    static kata_cc_stub_handler: u8;
    static kata_cc_stub_restorer: u8;
    static kata_cc_stub_entry: u8;
    static kata_cc_stub_end: u8;
}

/// The code as it lies in the sentry, and where in it things begin.
pub(super) struct StubCode {
    /// All of it.
    pub(super) bytes: &'static [u8],
    /// Where a new stub begins.
    pub(super) start: u64,
    /// The signal handler.
    pub(super) handler: u64,
    /// What a signal handler returns to.
    pub(super) restorer: u64,
    /// Where replaced call sites lead.
    pub(super) entry: u64,
}

impl StubCode {
    /// The code that this program was linked with.
    pub(super) fn linked() -> Self {
        let begin = &raw const kata_cc_stub_begin;
        let offset = |symbol: *const u8| symbol.addr() as u64 - begin.addr() as u64;
        let size = (&raw const kata_cc_stub_end).addr() - begin.addr();
        // SAFETY: both symbols are of one section, the second after the first; the bytes between are code, which nothing writes to.
        let bytes = unsafe { std::slice::from_raw_parts(begin, size) };
        Self {
            bytes,
            start: offset(&raw const kata_cc_stub_start),
            handler: offset(&raw const kata_cc_stub_handler),
            restorer: offset(&raw const kata_cc_stub_restorer),
            entry: offset(&raw const kata_cc_stub_entry),
        }
    }
}
