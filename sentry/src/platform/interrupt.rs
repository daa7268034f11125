//! What reaches a guest thread from elsewhere.

/// Interrupts one guest thread.
pub trait Interrupt: Send + Sync {
    /// If the guest runs, it stops with [`Trap::Interrupted`]; if it does not, its next [`Thread::resume`] may end so at once.
    fn interrupt(&self);

    /// The sentry's thread that serves this one is about to wait for something else.
    fn rest(&self) {}

    /// The same, after `wake` woke others: whom it wakes early ([`goes_on_soon`](Self::goes_on_soon)) may get the processor that the guest leaves.
    fn leave_to(&self, wake: &mut dyn FnMut()) {
        wake();
        self.rest();
    }

    /// That thread asks a gofer, and waits for the answer.
    fn asks(&self) {}

    /// It has the answer.
    fn is_answered(&self) {}

    /// What that one waits for has come: it will go on with the guest.
    fn goes_on_soon(&self) {}

    /// Ticks for which guest code slept since it was let run, and whether it does so now ([`Thread::slept`]).
    fn slept(&self) -> (u64, bool) {
        (0, false)
    }

    /// Takes back what [`Thread::let_by_itself`] allowed, from elsewhere and at once.
    fn forbid_by_itself(&self) {}

    /// The guest is to end, and was [interrupted](Self::interrupt): what serves it may not be held up by it any more.
    fn ends(&self) {}

    /// As [`Thread::set_answers`], from elsewhere: of one call that this thread has an answer for.
    fn set_answer(&self, number: u64, value: u64) {
        let _ = (number, value);
    }
}
