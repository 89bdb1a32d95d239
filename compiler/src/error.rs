//! The command's error type: whose fault it is decides the exit status.

use std::borrow::Cow;
use std::fmt;

/// Exit status by blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The input, the options or the budget: exit 1.
    User,
    /// Our bug: exit 2.
    Internal,
}

/// Why a command failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Whose fault.
    pub blame: Blame,
    /// One clear message, without a trailing period or newline.
    pub message: String,
    /// What to do next, if there is more to say than the message says.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure the user can fix.
    pub fn user(message: impl fmt::Display) -> Self {
        Self { blame: Blame::User, message: message.to_string(), hint: None }
    }
    /// A failure that is our bug.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self { blame: Blame::Internal, message: message.to_string(), hint: None }
    }
    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
    /// The process exit status.
    pub fn exit_code(&self) -> u8 {
        match self.blame {
            Blame::User => 1,
            Blame::Internal => 2,
        }
    }
}

/// The text with control characters other than newlines written out: messages quote names
/// from files, which must not steer the terminal.
pub fn visible(text: &str) -> Cow<'_, str> {
    let hidden = |c: char| c.is_control() && c != '\n';
    if !text.contains(hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hidden(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.blame {
            Blame::User => write!(f, "error: {}", visible(&self.message))?,
            Blame::Internal => write!(f, "internal error: {}", visible(&self.message))?,
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {}", visible(hint))?;
        }
        if self.blame == Blame::Internal {
            write!(f, "\nThis is a bug in vdnnc; please report it with the command and the model.")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl From<vdnn_passes::PassError> for Failure {
    fn from(e: vdnn_passes::PassError) -> Self {
        match e {
            vdnn_passes::PassError::Unsupported(_) => Self::user(e),
            _ => Self::internal(e),
        }
    }
}
