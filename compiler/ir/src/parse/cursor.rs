//! Tokens of the text form.

use crate::schedule::ConvSchedule;
use std::str::FromStr;

/// An error at a byte offset of the text.
pub(super) struct Failure {
    pub at: usize,
    pub message: String,
}

impl Failure {
    pub fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }
}

/// A position in the text. Every method first skips blanks and comments.
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The offset of the next token.
    pub fn at(&mut self) -> usize {
        let bytes = self.text.as_bytes();
        while let Some(&b) = bytes.get(self.at) {
            if b == b';' {
                self.at += self.text[self.at..].find('\n').unwrap_or(self.text.len() - self.at);
            } else if b.is_ascii_whitespace() {
                self.at += 1;
            } else {
                break;
            }
        }
        self.at
    }

    fn rest(&mut self) -> &'a str {
        let at = self.at();
        &self.text[at..]
    }

    fn prefix_len(&mut self, accept: impl Fn(u8) -> bool) -> usize {
        let rest = self.rest();
        rest.bytes().position(|b| !accept(b)).unwrap_or(rest.len())
    }

    /// The next token for an error message.
    pub fn found(&mut self) -> String {
        let rest = self.rest();
        match self.peek_word() {
            "" => rest.chars().next().map_or("the end of the text".to_owned(), |c| format!("`{c}`")),
            word => format!("`{}`", word.chars().take(40).collect::<String>()),
        }
    }

    fn fail<T>(&mut self, expected: &str) -> Result<T, Failure> {
        let at = self.at();
        let found = self.found();
        Err(Failure::new(at, format!("expected {expected}, found {found}")))
    }

    pub fn peek_word(&mut self) -> &'a str {
        let n = self.prefix_len(is_word);
        &self.text[self.at..self.at + n]
    }

    pub fn word(&mut self) -> &'a str {
        let word = self.peek_word();
        self.at += word.len();
        word
    }

    pub fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek_word() == word;
        if found {
            self.at += word.len();
        }
        found
    }

    pub fn keyword(&mut self, word: &str) -> Result<(), Failure> {
        if self.take_word(word) { Ok(()) } else { self.fail(&format!("`{word}`")) }
    }

    pub fn peek_symbol(&mut self, symbol: char) -> bool {
        self.rest().starts_with(symbol)
    }

    pub fn take_symbol(&mut self, symbol: char) -> bool {
        let found = self.peek_symbol(symbol);
        if found {
            self.at += symbol.len_utf8();
        }
        found
    }

    pub fn symbol(&mut self, symbol: char) -> Result<(), Failure> {
        if self.take_symbol(symbol) { Ok(()) } else { self.fail(&format!("`{symbol}`")) }
    }

    pub fn end(&mut self) -> Result<(), Failure> {
        if self.rest().is_empty() { Ok(()) } else { self.fail("the end of the text") }
    }

    /// A word that is the name of a `T`.
    pub fn named<T: FromStr<Err = String>>(&mut self) -> Result<T, Failure> {
        let at = self.at();
        self.word().parse().map_err(|e| Failure::new(at, e))
    }

    pub fn number(&mut self) -> Result<u64, Failure> {
        let n = self.prefix_len(|b| b.is_ascii_digit());
        match self.text[self.at..self.at + n].parse() {
            Ok(number) => {
                self.at += n;
                Ok(number)
            }
            Err(_) => self.fail("a number below 2^64"),
        }
    }

    pub fn number_u32(&mut self) -> Result<u32, Failure> {
        let at = self.at();
        let n = self.number()?;
        u32::try_from(n).map_err(|_| Failure::new(at, format!("expected a number below 2^32, found {n}")))
    }

    pub fn string(&mut self) -> Result<String, Failure> {
        self.symbol_for_string()?;
        let mut out = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(stop) = rest.find(['"', '\\', '\n']) else {
                self.at = self.text.len();
                return self.fail("a closing `\"`");
            };
            out.push_str(&rest[..stop]);
            self.at += stop;
            match rest.as_bytes()[stop] {
                b'"' => {
                    self.at += 1;
                    return Ok(out);
                }
                b'\n' => return Err(Failure::new(self.at, "expected a closing `\"` before the line ends")),
                _ => out.push(self.escape()?),
            }
        }
    }

    fn symbol_for_string(&mut self) -> Result<(), Failure> {
        if self.take_symbol('"') { Ok(()) } else { self.fail("a name in double quotes") }
    }

    /// An escape, from the backslash on.
    fn escape(&mut self) -> Result<char, Failure> {
        let bad = || Failure::new(self.at, "expected one of the escapes \\\" \\\\ \\n \\r \\t \\u{hex}");
        let rest = &self.text[self.at + 1..];
        let (c, len) = match rest.bytes().next().ok_or_else(bad)? {
            b'"' => ('"', 1),
            b'\\' => ('\\', 1),
            b'n' => ('\n', 1),
            b'r' => ('\r', 1),
            b't' => ('\t', 1),
            b'u' => {
                let digits = rest[1..].strip_prefix('{').ok_or_else(bad)?;
                let n = digits.bytes().take(7).position(|b| b == b'}').ok_or_else(bad)?;
                let code = u32::from_str_radix(&digits[..n], 16).map_err(|_| bad())?;
                (char::from_u32(code).ok_or_else(bad)?, n + 3)
            }
            _ => return Err(bad()),
        };
        self.at += 1 + len;
        Ok(c)
    }

    /// A tensor type such as `f32[2,3]`, unread.
    pub fn type_text(&mut self) -> Result<&'a str, Failure> {
        let rest = self.rest();
        let Some(end) =
            rest.bytes().position(|b| b == b']' || b == b'\n').filter(|&i| rest.as_bytes()[i] == b']')
        else {
            return self.fail("a tensor type such as f32[8,3,224,224]");
        };
        let suffix = if rest[end + 1..].starts_with("nhwc") { "nhwc".len() } else { 0 };
        self.at += end + 1 + suffix;
        Ok(&rest[..=end + suffix])
    }

    /// A convolution algorithm or a division, which may have `=`, `@` and `+` in it.
    pub fn algo(&mut self) -> Result<ConvSchedule, Failure> {
        let at = self.at();
        let n =
            self.prefix_len(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'=' | b'-' | b'@' | b'+'));
        let text = &self.text[self.at..self.at + n];
        self.at += n;
        text.parse().map_err(|e| Failure::new(at, e))
    }

    /// Hexadecimal bytes after `0x`.
    pub fn hex(&mut self) -> Result<Vec<u8>, Failure> {
        let word = self.peek_word();
        let digits = word.strip_prefix("0x").filter(|d| d.len().is_multiple_of(2));
        let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
        let bytes = digits.and_then(|d| {
            d.as_bytes().chunks_exact(2).map(|c| Some(digit(c[0])? << 4 | digit(c[1])?)).collect()
        });
        match bytes {
            Some(bytes) => {
                self.at += word.len();
                Ok(bytes)
            }
            None => self.fail("bytes in hexadecimal such as 0x00ff"),
        }
    }

    /// The text of an op, unread: a word and, directly behind it, balanced parentheses.
    pub fn op_text(&mut self) -> Result<&'a str, Failure> {
        let start = self.at();
        if self.word().is_empty() {
            return self.fail("an op");
        }
        let bytes = self.text.as_bytes();
        // `relu_like(%0)`: the parentheses of an op without attributes hold operands.
        let operands = self.text[self.at..].starts_with("(%");
        if bytes.get(self.at) == Some(&b'(') && !operands {
            let mut depth = 0usize;
            let close = bytes[self.at..].iter().position(|&b| {
                match b {
                    b'(' => depth += 1,
                    b')' => depth -= 1,
                    _ => {}
                }
                depth == 0
            });
            match close {
                Some(n) => self.at += n + 1,
                None => return Err(Failure::new(self.at, "expected a closing `)` of the op's attributes")),
            }
        }
        Ok(&self.text[start..self.at])
    }
}
