//! Tokens into a tree. The lines of the grammar, from what binds least to what binds most:
//!
//! ```text
//! a ? b : c      a || b      a && b      a == b  a in b …      a + b  a - b      a * b  a / b  a % b
//! !a  -a         a.b  a.b(c)  a[b]       (a)  [a, b]  {a: b}  a(b)  "a"  1
//! ```

use super::Unreadable;
use super::lex::{Is, Token, tokens};

/// A node, and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tree {
    pub(super) is: Of,
    pub(super) at: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Of {
    Constant(Constant),
    Name(Box<str>),
    Select(Box<Tree>, Box<str>),
    Index(Box<Tree>, Box<Tree>),
    /// A function, or a method of its first argument.
    Call(Box<str>, Option<Box<Tree>>, Vec<Tree>),
    List(Vec<Tree>),
    Map(Vec<(Tree, Tree)>),
    Not(Box<Tree>),
    Negative(Box<Tree>),
    Choice(Box<[Tree; 3]>),
    Two(Operator, Box<[Tree; 2]>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Constant {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Or,
    And,
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

use Operator as O;

/// Those that bind alike, from the least to the most.
const LEVELS: [&[(&str, Operator)]; 5] = [
    &[("||", O::Or)],
    &[("&&", O::And)],
    &[
        ("==", O::Equal),
        ("!=", O::Unequal),
        ("<", O::Less),
        ("<=", O::LessOrEqual),
        (">", O::Greater),
        (">=", O::GreaterOrEqual),
        ("in", O::In),
    ],
    &[("+", O::Add), ("-", O::Subtract)],
    &[("*", O::Multiply), ("/", O::Divide), ("%", O::Remainder)],
];

/// Nodes of a tree; with it its depth is bounded, and with that the stack.
const MOST: usize = 512;
/// Brackets within brackets.
const DEEPEST: usize = 32;

pub(super) fn parse(text: &str) -> Result<Tree, Unreadable> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        next: 0,
        nodes: 0,
        depth: 0,
    };
    let tree = parser.whole()?;
    match parser.peek() {
        Is::End => Ok(tree),
        _ => Err(parser.wrong("an operator is expected")),
    }
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    nodes: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> &Is {
        &self.tokens[self.next.min(self.tokens.len() - 1)].is
    }

    fn at(&self) -> usize {
        self.tokens[self.next.min(self.tokens.len() - 1)].at
    }

    fn wrong(&self, why: &str) -> Unreadable {
        Unreadable {
            why: why.to_owned(),
            at: self.at(),
        }
    }

    /// Takes a sign if it is the next.
    fn takes(&mut self, sign: &str) -> bool {
        let fits = match self.peek() {
            Is::Sign(next) => *next == sign,
            Is::Name(name) => &**name == sign,
            _ => false,
        };
        self.next += usize::from(fits);
        fits
    }

    fn expect(&mut self, sign: &str) -> Result<(), Unreadable> {
        match self.takes(sign) {
            true => Ok(()),
            false => Err(self.wrong(&format!("{sign:?} is expected"))),
        }
    }

    fn node(&mut self, is: Of, at: usize) -> Result<Tree, Unreadable> {
        self.nodes += 1;
        if self.nodes > MOST {
            return Err(self.wrong(&format!("more than {MOST} parts")));
        }
        Ok(Tree { is, at })
    }

    fn whole(&mut self) -> Result<Tree, Unreadable> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.wrong("too many brackets"));
        }
        let at = self.at();
        let mut tree = self.level(0)?;
        if self.takes("?") {
            let yes = self.level(0)?;
            self.expect(":")?;
            let no = self.whole()?;
            tree = self.node(Of::Choice(Box::new([tree, yes, no])), at)?;
        }
        self.depth -= 1;
        Ok(tree)
    }

    fn level(&mut self, level: usize) -> Result<Tree, Unreadable> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let at = self.at();
        let mut left = self.level(level + 1)?;
        loop {
            let found = operators.iter().find(|(sign, _)| self.takes(sign));
            let Some((_, operator)) = found else {
                return Ok(left);
            };
            let right = self.level(level + 1)?;
            left = self.node(Of::Two(*operator, Box::new([left, right])), at)?;
        }
    }

    fn unary(&mut self) -> Result<Tree, Unreadable> {
        let at = self.at();
        let mut signs = Vec::new();
        loop {
            if self.takes("!") {
                signs.push(true);
            } else if self.takes("-") {
                signs.push(false);
            } else {
                break;
            }
        }
        let mut tree = match (signs.last(), self.peek()) {
            // The lowest number has no positive twin.
            (Some(false), Is::Int(number)) => {
                let number = 0_i64.checked_sub_unsigned(*number);
                let number = number.ok_or_else(|| self.wrong("a number is too large"))?;
                self.next += 1;
                signs.pop();
                let constant = self.node(Of::Constant(Constant::Int(number)), at)?;
                self.members(constant)?
            }
            _ => self.member()?,
        };
        for not in signs.into_iter().rev() {
            let inner = Box::new(tree);
            let is = if not {
                Of::Not(inner)
            } else {
                Of::Negative(inner)
            };
            tree = self.node(is, at)?;
        }
        Ok(tree)
    }

    fn member(&mut self) -> Result<Tree, Unreadable> {
        let tree = self.primary()?;
        self.members(tree)
    }

    fn members(&mut self, mut tree: Tree) -> Result<Tree, Unreadable> {
        loop {
            let at = tree.at;
            if self.takes(".") {
                let name = self.name()?;
                let is = if self.takes("(") {
                    Of::Call(name, Some(Box::new(tree)), self.arguments(")")?)
                } else {
                    Of::Select(Box::new(tree), name)
                };
                tree = self.node(is, at)?;
            } else if self.takes("[") {
                let index = self.whole()?;
                self.expect("]")?;
                tree = self.node(Of::Index(Box::new(tree), Box::new(index)), at)?;
            } else {
                return Ok(tree);
            }
        }
    }

    fn name(&mut self) -> Result<Box<str>, Unreadable> {
        match self.peek() {
            Is::Name(name) => {
                let name = name.clone();
                self.next += 1;
                Ok(name)
            }
            _ => Err(self.wrong("a name is expected")),
        }
    }

    fn arguments(&mut self, end: &str) -> Result<Vec<Tree>, Unreadable> {
        let mut all = Vec::new();
        while !self.takes(end) {
            all.push(self.whole()?);
            if !self.takes(",") {
                self.expect(end)?;
                break;
            }
        }
        Ok(all)
    }

    fn primary(&mut self) -> Result<Tree, Unreadable> {
        let at = self.at();
        if self.takes("(") {
            let tree = self.whole()?;
            self.expect(")")?;
            return Ok(tree);
        }
        let is = if self.takes("[") {
            Of::List(self.arguments("]")?)
        } else if self.takes("{") {
            Of::Map(self.entries()?)
        } else if matches!(self.peek(), Is::Name(_)) {
            let name = self.name()?;
            match &*name {
                "true" => Of::Constant(Constant::Bool(true)),
                "false" => Of::Constant(Constant::Bool(false)),
                "null" => Of::Constant(Constant::Null),
                _ if self.takes("(") => Of::Call(name, None, self.arguments(")")?),
                _ => Of::Name(name),
            }
        } else {
            let constant = match self.peek() {
                Is::Int(number) => Constant::Int(
                    i64::try_from(*number).map_err(|_| self.wrong("a number is too large"))?,
                ),
                Is::Uint(number) => Constant::Uint(*number),
                Is::Double(number) => Constant::Double(*number),
                Is::Text(text) => Constant::Text(text.clone()),
                Is::Bytes(bytes) => Constant::Bytes(bytes.clone()),
                _ => return Err(self.wrong("a value is expected")),
            };
            self.next += 1;
            Of::Constant(constant)
        };
        self.node(is, at)
    }

    fn entries(&mut self) -> Result<Vec<(Tree, Tree)>, Unreadable> {
        let mut all = Vec::new();
        while !self.takes("}") {
            let key = self.whole()?;
            self.expect(":")?;
            all.push((key, self.whole()?));
            if !self.takes(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(all)
    }
}
