//! Reads the tokens of one line of the text form.

use std::str::FromStr;

/// What was expected, and the byte offset in the line where it was not found.
pub(crate) type Fail = (usize, String);

/// A position in a line.
pub(crate) struct Cursor<'a> {
    line: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(line: &'a str) -> Self {
        Self { line, at: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.line[self.at..]
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches(' ').len();
    }

    pub(crate) fn fail<T>(&self, message: impl Into<String>) -> Result<T, Fail> {
        Err((self.at, message.into()))
    }

    /// The next run of characters other than space, comma, parentheses and `=`.
    pub(crate) fn word(&mut self) -> Result<&'a str, Fail> {
        self.skip_space();
        let rest = self.rest();
        let n = rest.find([' ', ',', '(', ')', '=']).unwrap_or(rest.len());
        if n == 0 {
            return self.fail("expected a word");
        }
        self.at += n;
        Ok(&rest[..n])
    }

    /// A word read by `read`; `what` names it in the error.
    pub(crate) fn map<T>(&mut self, what: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, Fail> {
        self.skip_space();
        let at = self.at;
        let word = self.word().map_err(|(at, _)| (at, format!("expected {what}")))?;
        read(word).ok_or_else(|| (at, format!("`{}` is not {what}", shorten(word))))
    }

    /// A word read by its type.
    pub(crate) fn parse<T: FromStr>(&mut self, what: &str) -> Result<T, Fail> {
        self.map(what, |w| w.parse().ok())
    }

    /// An id: a prefix and a decimal number without sign or leading zeros.
    pub(crate) fn id(&mut self, prefix: &str) -> Result<u32, Fail> {
        self.skip_space();
        let at = self.at;
        let number = self.word().ok().and_then(|word| id(word, prefix));
        number.ok_or_else(|| (at, format!("expected an id such as {prefix}0")))
    }

    /// True, and past it, if the text goes on with `token`.
    pub(crate) fn eat(&mut self, token: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    pub(crate) fn expect(&mut self, token: &str) -> Result<(), Fail> {
        if self.eat(token) { Ok(()) } else { self.fail(format!("expected `{token}`")) }
    }

    /// A string in quotes.
    pub(crate) fn quoted(&mut self) -> Result<String, Fail> {
        self.expect("\"")?;
        let start = self.at;
        let mut out = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            let here = start + i;
            match c {
                '"' => {
                    self.at = here + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some(c @ ('"' | '\\')) => out.push(c),
                    Some('u') => {
                        let text = &self.line[here + 2..];
                        let code = text
                            .strip_prefix('{')
                            .and_then(|t| t.split_once('}'))
                            .filter(|(hex, _)| hex.len() <= 6)
                            .and_then(|(hex, _)| Some((u32::from_str_radix(hex, 16).ok()?, hex.len())));
                        let Some((c, n)) = code.and_then(|(v, n)| Some((char::from_u32(v)?, n))) else {
                            return Err((here, "bad escape".into()));
                        };
                        out.push(c);
                        // The braces and digits are ASCII.
                        chars.nth(n + 1);
                    }
                    _ => return Err((here, "bad escape".into())),
                },
                c => out.push(c),
            }
        }
        Err((start - 1, "the string does not end".into()))
    }

    /// The text of an op: a word with, perhaps, an argument list in balanced brackets.
    pub(crate) fn op_text(&mut self) -> Result<&'a str, Fail> {
        self.skip_space();
        let start = self.at;
        self.word()?;
        if self.rest().starts_with('(') {
            let mut depth = 0usize;
            for (i, c) in self.rest().bytes().enumerate() {
                match c {
                    b'(' => depth += 1,
                    b')' => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    self.at += i + 1;
                    return Ok(&self.line[start..self.at]);
                }
            }
            return Err((start, "the op's parentheses do not close".into()));
        }
        Ok(&self.line[start..self.at])
    }

    /// `(x, y, ..)` with items read by `item`.
    pub(crate) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Fail>,
        mut push: impl FnMut(T),
    ) -> Result<(), Fail> {
        self.expect("(")?;
        if self.eat(")") {
            return Ok(());
        }
        loop {
            push(item(self)?);
            if self.eat(")") {
                return Ok(());
            }
            self.expect(",")?;
        }
    }

    /// Bytes in hexadecimal; none at all is the empty string.
    pub(crate) fn hex(&mut self) -> Result<Vec<u8>, Fail> {
        let rest = self.rest();
        let n = rest.find(' ').unwrap_or(rest.len());
        let bytes = hex(&rest[..n]);
        let Some(bytes) = bytes else { return self.fail("expected bytes in hexadecimal") };
        self.at += n;
        Ok(bytes)
    }

    /// True if only spaces are left.
    pub(crate) fn is_at_end(&mut self) -> bool {
        self.skip_space();
        self.rest().is_empty()
    }

    pub(crate) fn end(&mut self) -> Result<(), Fail> {
        if self.is_at_end() { Ok(()) } else { self.fail("expected the end of the line") }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }
}

/// Reads `prefix` and a canonical decimal number.
pub(crate) fn id(word: &str, prefix: &str) -> Option<u32> {
    let digits = word.strip_prefix(prefix)?;
    let canonical = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if canonical { digits.parse().ok() } else { None }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    fn digit(b: u8) -> Option<u8> {
        match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        }
    }
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|p| Some(digit(p[0])? << 4 | digit(p[1])?)).collect()
}

fn shorten(word: &str) -> String {
    if word.chars().count() <= 40 { word.to_owned() } else { word.chars().take(40).chain(['…']).collect() }
}
