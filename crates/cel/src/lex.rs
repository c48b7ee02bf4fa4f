//! Text to tokens.

use crate::ast::Literal;

#[derive(Clone, Debug)]
pub enum Token {
    Ident(String),
    Literal(Literal),
    /// Operators and brackets.
    Sign(&'static str),
    End,
}

/// A fault: where, and what.
pub type Fault = (usize, String);

const SIGNS: [&str; 27] = [
    "&&", "||", "==", "!=", "<=", ">=", "[?", ".?", "{?", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ",", ".",
    "(", ")", "[", "]", "{", "}",
];

/// The tokens of a text, with the character at which each begins.
pub fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Fault> {
    let chars: Vec<char> = text.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0 };
    let mut out = Vec::new();
    loop {
        lexer.skip_blanks();
        let at = lexer.at;
        let Some(token) = lexer.next()? else { break };
        out.push((at, token));
    }
    out.push((chars.len(), Token::End));
    Ok(out)
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn skip_blanks(&mut self) {
        while let Some(c) = self.peek(0) {
            if c == '/' && self.peek(1) == Some('/') {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else if c.is_whitespace() {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    fn next(&mut self) -> Result<Option<Token>, Fault> {
        let Some(c) = self.peek(0) else { return Ok(None) };
        if let Some((raw, bytes, skip)) = self.string_start() {
            self.at += skip;
            return self.string(raw, bytes).map(Some);
        }
        if c == '`' {
            return self.quoted_ident().map(Some);
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let start = self.at;
            while self.peek(0).is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                self.at += 1;
            }
            let word: String = self.chars[start..self.at].iter().collect();
            return Ok(Some(match word.as_str() {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                "in" => Token::Sign("in"),
                _ => Token::Ident(word),
            }));
        }
        if c.is_ascii_digit() || c == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            return self.number().map(Some);
        }
        let sign = SIGNS.iter().find(|sign| sign.chars().enumerate().all(|(ahead, s)| self.peek(ahead) == Some(s)));
        match sign {
            Some(sign) => {
                self.at += sign.len();
                Ok(Some(Token::Sign(sign)))
            }
            None => Err((self.at, format!("Syntax error: token recognition error at: '{c}'"))),
        }
    }

    fn quoted_ident(&mut self) -> Result<Token, Fault> {
        let start = self.at;
        self.at += 1;
        let mut name = String::new();
        while let Some(c) = self.peek(0) {
            self.at += 1;
            if c == '`' {
                return Ok(Token::Ident(name));
            }
            name.push(c);
        }
        Err((start, "Syntax error: token recognition error at: '`'".to_owned()))
    }

    /// Whether a string begins here: raw, of bytes, and how long its prefix is.
    fn string_start(&self) -> Option<(bool, bool, usize)> {
        let (mut raw, mut bytes, mut skip) = (false, false, 0);
        while skip < 2 {
            match self.peek(skip)? {
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes => bytes = true,
                _ => break,
            }
            skip += 1;
        }
        matches!(self.peek(skip), Some('"' | '\'')).then_some((raw, bytes, skip))
    }

    fn string(&mut self, raw: bool, bytes: bool) -> Result<Token, Fault> {
        let start = self.at;
        let quote = self.chars[self.at];
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        self.at += if triple { 3 } else { 1 };
        let unterminated = || (start, "Syntax error: token recognition error: string is not terminated".to_owned());
        let (mut text, mut data) = (String::new(), Vec::new());
        loop {
            let c = self.peek(0).ok_or_else(unterminated)?;
            if c == quote && (!triple || self.peek(1) == Some(quote) && self.peek(2) == Some(quote)) {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            if c == '\n' && !triple {
                return Err(unterminated());
            }
            self.at += 1;
            if c != '\\' || raw {
                text.push(c);
                data.extend(c.to_string().bytes());
                continue;
            }
            let (c, byte) = self.escape(start)?;
            text.push(c);
            match byte {
                Some(byte) => data.push(byte),
                None => data.extend(c.to_string().bytes()),
            }
        }
        Ok(Token::Literal(if bytes { Literal::Bytes(data) } else { Literal::Text(text) }))
    }

    fn escape(&mut self, start: usize) -> Result<(char, Option<u8>), Fault> {
        let wrong = || (start, "Syntax error: invalid escape sequence in string".to_owned());
        let c = self.peek(0).ok_or_else(wrong)?;
        self.at += 1;
        let plain = match c {
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            '\\' | '\'' | '"' | '`' | '?' => c,
            'x' | 'X' => return self.code(2, 16).map(|n| (char::from(n as u8), Some(n as u8))).ok_or_else(wrong),
            'u' => return self.code(4, 16).and_then(char::from_u32).map(|c| (c, None)).ok_or_else(wrong),
            'U' => return self.code(8, 16).and_then(char::from_u32).map(|c| (c, None)).ok_or_else(wrong),
            '0'..='3' => {
                self.at -= 1;
                return self.code(3, 8).map(|n| (char::from(n as u8), Some(n as u8))).ok_or_else(wrong);
            }
            _ => return Err(wrong()),
        };
        Ok((plain, None))
    }

    fn code(&mut self, digits: usize, radix: u32) -> Option<u32> {
        let end = self.at + digits;
        let text: String = self.chars.get(self.at..end)?.iter().collect();
        self.at = end;
        u32::from_str_radix(&text, radix).ok()
    }

    fn number(&mut self) -> Result<Token, Fault> {
        let start = self.at;
        let hex = self.peek(0) == Some('0') && matches!(self.peek(1), Some('x' | 'X'));
        if hex {
            self.at += 2;
        }
        let mut double = false;
        while let Some(c) = self.peek(0) {
            let sign_of_exponent =
                matches!(c, '+' | '-') && !hex && matches!(self.chars[self.at - 1], 'e' | 'E') && self.at > start;
            match c {
                _ if hex && c.is_ascii_hexdigit() || c.is_ascii_digit() || sign_of_exponent => {}
                '.' if !hex && !double && self.peek(1).is_some_and(|c| c.is_ascii_digit()) => double = true,
                'e' | 'E' if !hex => double = true,
                _ => break,
            }
            self.at += 1;
        }
        let text: String = self.chars[start..self.at].iter().collect();
        let digits = text.trim_start_matches("0x").trim_start_matches("0X");
        let radix = if hex { 16 } else { 10 };
        let literal = if matches!(self.peek(0), Some('u' | 'U')) && !double {
            self.at += 1;
            u64::from_str_radix(digits, radix).ok().map(Literal::Uint)
        } else if double {
            text.parse().ok().map(Literal::Double)
        } else {
            // One more than the largest: the smallest number without its sign.
            let number = u64::from_str_radix(digits, radix).ok();
            number.filter(|n| *n <= 1 << 63).map(|n| Literal::Int(n as i64))
        };
        let kind = if double { "double" } else { "int" };
        literal.map(Token::Literal).ok_or_else(|| (start, format!("Syntax error: invalid {kind} literal")))
    }
}
