//! An error with all its causes as one line, for messages and logs. The outer errors of HTTP libraries say little by themselves.
#![forbid(unsafe_code)]

use std::error::Error;

/// The error and what caused it, outermost first. A cause that an outer error's text already tells is not told again.
#[must_use]
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Failed(&'static str, Option<Box<Failed>>);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    #[test]
    fn each_cause_is_told_once() {
        let root = Failed("refused", None);
        let middle = Failed("cannot connect: refused", Some(Box::new(root)));
        let outer = Failed("error sending request", Some(Box::new(middle)));
        assert_eq!(causes(&outer), "error sending request: cannot connect: refused");
        assert_eq!(causes(&Failed("alone", None)), "alone");
    }
}
