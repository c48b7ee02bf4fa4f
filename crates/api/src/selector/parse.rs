//! The grammar of label selectors in text form.

use serde_json::Value;

use super::{Op, ParseError, Requirement};
use crate::names;

/// Parses a selector into its requirements, in the order of the text.
pub fn requirements(text: &str) -> Result<Vec<Requirement>, ParseError> {
    Parser { tokens: tokens(text), position: 0 }.selector()
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
    Comma,
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
    Bad(String),
    End,
}

impl Token {
    fn text(&self) -> String {
        match self {
            Self::Word(word) => word.clone(),
            Self::Open => "(".into(),
            Self::Close => ")".into(),
            Self::Comma => ",".into(),
            Self::Not => "!".into(),
            Self::Equals => "=".into(),
            Self::DoubleEquals => "==".into(),
            Self::NotEquals => "!=".into(),
            Self::Greater => ">".into(),
            Self::Less => "<".into(),
            Self::Bad(text) => text.clone(),
            Self::End => String::new(),
        }
    }
}

fn is_symbol(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', '\r', '\n']);
    while let Some(first) = rest.chars().next() {
        let (token, length) = if is_symbol(first) { symbol(rest) } else { word(rest) };
        tokens.push(token);
        rest = rest[length..].trim_start_matches([' ', '\t', '\r', '\n']);
    }
    tokens.push(Token::End);
    tokens
}

fn word(text: &str) -> (Token, usize) {
    let end = text.find(|c| is_symbol(c) || matches!(c, ' ' | '\t' | '\r' | '\n')).unwrap_or(text.len());
    (Token::Word(text[..end].to_owned()), end)
}

fn symbol(text: &str) -> (Token, usize) {
    let two = match text.get(..2) {
        Some("==") => Some(Token::DoubleEquals),
        Some("!=") => Some(Token::NotEquals),
        _ => None,
    };
    if let Some(token) = two {
        return (token, 2);
    }
    let token = match text.as_bytes()[0] {
        b'=' => Token::Equals,
        b'!' => Token::Not,
        b'(' => Token::Open,
        b')' => Token::Close,
        b',' => Token::Comma,
        b'>' => Token::Greater,
        b'<' => Token::Less,
        other => Token::Bad(char::from(other).to_string()),
    };
    (token, 1)
}

struct Parser {
    tokens: Vec<Token>,
    position: usize,
}

fn found(token: &Token, expected: &str) -> ParseError {
    ParseError(format!("found '{}', expected: {expected}", token.text()))
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.position).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.position += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, ParseError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::End => return Ok(requirements),
                Token::Word(_) | Token::Not => {}
                other => return Err(found(other, "!, identifier, or 'end of string'")),
            }
            let requirement = self
                .requirement()
                .map_err(|ParseError(error)| ParseError(format!("unable to parse requirement: {error}")))?;
            requirements.push(requirement);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Comma if !matches!(self.peek(), Token::Word(_) | Token::Not) => {
                    return Err(found(self.peek(), "identifier after ','"));
                }
                Token::Comma => {}
                other => return Err(found(&other, "',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        let mut token = self.next();
        let negated = token == Token::Not;
        if negated {
            token = self.next();
        }
        let Token::Word(key) = token else { return Err(found(&token, "identifier")) };
        let wrong = names::is_qualified_name(&key);
        if !wrong.is_empty() {
            let value = Value::from(key);
            return Err(ParseError(format!("<nil>: Invalid value: {value}: {}", wrong.join("; "))));
        }
        if negated {
            return Ok(Requirement { key, op: Op::DoesNotExist, values: Vec::new() });
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok(Requirement { key, op: Op::Exists, values: Vec::new() });
        }
        let (op, many) = self.operator()?;
        let mut values = if many { self.values()? } else { vec![self.exact_value()?] };
        values.sort();
        values.dedup();
        let requirement = Requirement { key, op, values };
        requirement.check()?;
        Ok(requirement)
    }

    fn operator(&mut self) -> Result<(Op, bool), ParseError> {
        let token = self.next();
        match &token {
            Token::Equals | Token::DoubleEquals => Ok((Op::In, false)),
            Token::NotEquals => Ok((Op::NotIn, false)),
            Token::Greater => Ok((Op::Gt, false)),
            Token::Less => Ok((Op::Lt, false)),
            Token::Word(word) if word == "in" => Ok((Op::In, true)),
            Token::Word(word) if word == "notin" => Ok((Op::NotIn, true)),
            other => Err(found(other, "in, notin, =, ==, !=, gt, lt")),
        }
    }

    fn exact_value(&mut self) -> Result<String, ParseError> {
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(word) => Ok(word),
            other => Err(found(&other, "identifier")),
        }
    }

    /// `(a, b)`; an empty place between commas or parentheses is the empty value.
    fn values(&mut self) -> Result<Vec<String>, ParseError> {
        let open = self.next();
        if open != Token::Open {
            return Err(ParseError(format!("found '{}' expected: '('", open.text())));
        }
        let mut values = Vec::new();
        loop {
            match self.peek().clone() {
                Token::Word(word) => {
                    self.position += 1;
                    values.push(word);
                }
                Token::Comma | Token::Close => values.push(String::new()),
                other if values.is_empty() => return Err(found(&other, "',', ')' or identifier")),
                other => return Err(found(&other, "',', or identifier")),
            }
            match self.next() {
                Token::Close => return Ok(values),
                Token::Comma => {}
                other => return Err(found(&other, "',' or ')'")),
            }
        }
    }
}
