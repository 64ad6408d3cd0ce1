//! Text into tokens.

use super::Unreadable;

/// A token, and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) is: Is,
    pub(super) at: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Is {
    Name(Box<str>),
    Int(u64),
    Uint(u64),
    Double(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    /// An operator, a bracket, a comma.
    Sign(&'static str),
    End,
}

/// The longer ones first.
const SIGNS: [&str; 25] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", ".", ",",
    "(", ")", "[", "]", "{", "}", "=",
];

pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Unreadable> {
    let mut all = Vec::new();
    let mut lexer = Lexer { text, at: 0 };
    loop {
        lexer.skip();
        let at = lexer.at;
        let is = lexer.next()?;
        let end = is == Is::End;
        all.push(Token { is, at });
        if end {
            return Ok(all);
        }
    }
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn wrong(&self, why: &str) -> Unreadable {
        Unreadable {
            why: why.to_owned(),
            at: self.at,
        }
    }

    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn next(&mut self) -> Result<Is, Unreadable> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Ok(Is::End);
        };
        if let Some(text) = self.quoted()? {
            return Ok(text);
        }
        if first.is_ascii_digit() || rest.strip_prefix('.').is_some_and(starts_with_digit) {
            return self.number();
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let word = |it: char| !it.is_ascii_alphanumeric() && it != '_';
            let length = rest.find(word).unwrap_or(rest.len());
            self.at += length;
            return Ok(Is::Name(rest[..length].into()));
        }
        let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign));
        let sign = sign.ok_or_else(|| self.wrong(&format!("{first:?} means nothing here")))?;
        self.at += sign.len();
        Ok(Is::Sign(sign))
    }

    fn number(&mut self) -> Result<Is, Unreadable> {
        let rest = self.rest();
        let wrong = || self.wrong("a number is expected");
        if let Some(hex) = rest.strip_prefix("0x").or(rest.strip_prefix("0X")) {
            let length = hex
                .find(|it: char| !it.is_ascii_hexdigit())
                .unwrap_or(hex.len());
            let number = u64::from_str_radix(&hex[..length], 16).map_err(|_| wrong())?;
            self.at += 2 + length;
            return Ok(self.unsigned(number));
        }
        let mut length = digits(rest);
        let mut whole = true;
        if rest[length..].starts_with('.') && starts_with_digit(&rest[length + 1..]) {
            length += 1 + digits(&rest[length + 1..]);
            whole = false;
        }
        if rest[length..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[length + 1..].starts_with(['+', '-']));
            let power = digits(&rest[length + 1 + sign..]);
            if power > 0 {
                length += 1 + sign + power;
                whole = false;
            }
        }
        let text = &rest[..length];
        if !whole {
            let number = text.parse().map_err(|_| wrong())?;
            self.at += length;
            return Ok(Is::Double(number));
        }
        let number = text.parse().map_err(|_| wrong())?;
        self.at += length;
        Ok(self.unsigned(number))
    }

    fn unsigned(&mut self, number: u64) -> Is {
        if self.rest().starts_with(['u', 'U']) {
            self.at += 1;
            return Is::Uint(number);
        }
        Is::Int(number)
    }

    /// A text or bytes, if there is one: `'a'`, `"a"`, three of them, with `r` or `b` before.
    fn quoted(&mut self) -> Result<Option<Is>, Unreadable> {
        let rest = self.rest();
        let prefix = rest.find(['\'', '"']).unwrap_or(3);
        let (raw, bytes) = match rest.get(..prefix).map(str::to_ascii_lowercase).as_deref() {
            Some("") => (false, false),
            Some("r") => (true, false),
            Some("b") => (false, true),
            Some("br" | "rb") => (true, true),
            _ => return Ok(None),
        };
        let opened = &rest[prefix..];
        let quote = ["'''", "\"\"\"", "'", "\""]
            .into_iter()
            .find(|it| opened.starts_with(it));
        let Some(quote) = quote else {
            return Ok(None);
        };
        self.at += prefix + quote.len();
        let mut found = Vec::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.at += quote.len();
                break;
            }
            let next = rest.chars().next();
            let next = next.filter(|it| quote.len() == 3 || *it != '\n');
            let next = next.ok_or_else(|| self.wrong("the text has no end"))?;
            self.at += next.len_utf8();
            if next == '\\' && !raw {
                self.escape(bytes, &mut found)?;
            } else {
                found.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if bytes {
            return Ok(Some(Is::Bytes(found.into())));
        }
        let text = String::from_utf8(found).map_err(|_| self.wrong("the text is not UTF-8"))?;
        Ok(Some(Is::Text(text.into())))
    }

    /// What follows a backslash.
    fn escape(&mut self, bytes: bool, found: &mut Vec<u8>) -> Result<(), Unreadable> {
        let wrong = self.wrong("an unknown escape");
        let letter = self.rest().chars().next().ok_or_else(|| wrong.clone())?;
        self.at += letter.len_utf8();
        let plain = match letter {
            'n' => Some(b'\n'),
            't' => Some(b'\t'),
            'r' => Some(b'\r'),
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'v' => Some(11),
            '\\' | '\'' | '"' | '`' | '?' => Some(letter as u8),
            _ => None,
        };
        if let Some(plain) = plain {
            found.push(plain);
            return Ok(());
        }
        let (length, radix) = match letter {
            'x' | 'X' => (2, 16),
            'u' if !bytes => (4, 16),
            'U' if !bytes => (8, 16),
            '0'..='3' => {
                self.at -= 1;
                (3, 8)
            }
            _ => return Err(wrong),
        };
        let digits = self.rest().get(..length).ok_or_else(|| wrong.clone())?;
        if !digits.chars().all(|it| it.is_digit(radix)) {
            return Err(wrong);
        }
        let code = u32::from_str_radix(digits, radix).map_err(|_| wrong.clone())?;
        self.at += length;
        match u8::try_from(code) {
            Ok(byte) if bytes => found.push(byte),
            _ => {
                let letter = char::from_u32(code).ok_or(wrong)?;
                found.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(())
    }
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

fn starts_with_digit(text: &str) -> bool {
    digits(text) > 0
}
