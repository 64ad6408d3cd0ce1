//! Text becomes objects.
//!
//! Enters: the text of a file. Leaves: for each document an object, or the kind we do not read,
//! or what is wrong with it and on which line.
//!
//! 1. split at the document markers      ([`documents`]): one bad document spoils no other
//! 2. read `apiVersion`, `kind`, name    (`Head`): so that even a fault knows its object
//! 3. read the whole as its type         ([`typed`])
//! 4. check what types cannot say        ([`super::check`])

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::aim::{Aim, aim};
use super::check::{self, Problem, Step};
use super::objects::{Kind, Object, ObjectKey};

/// What one document turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// An object of a kind we read, without faults.
    Object {
        /// The object.
        object: Object,
        /// The first line of the document, from 1.
        line: usize,
    },
    /// A kind, or a version of a kind, that we do not read.
    Ignored {
        /// As written: `apiVersion/kind`.
        kind: String,
    },
    /// A document that an API server would refuse.
    Fault {
        /// The line of the failing field, or of the document; from 1.
        line: usize,
        /// The object, if the document said so much.
        object: Option<ObjectKey>,
        /// What is wrong.
        reason: String,
        /// If it is an AuthorizationPolicy: whom it is about nevertheless.
        aim: Option<Aim>,
    },
}

/// Every document of `text`, in order. JSON is YAML too.
pub fn parse(text: &str) -> Vec<Parsed> {
    documents(text)
        .flat_map(|document| document.parse())
        .collect()
}

/// A document and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    line: usize,
    text: &'a str,
}

/// Splits at lines that begin with `---`, which inside a document can only be a marker. Documents
/// of nothing but comments are left out.
pub fn documents(text: &str) -> impl Iterator<Item = Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut starts = vec![(1, 0)];
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line
            .strip_prefix("---")
            .is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with([' ', '\t']))
        {
            starts.push((number + 1, offset));
        }
        offset += line.len();
    }
    let ends: Vec<usize> = starts
        .iter()
        .skip(1)
        .map(|(_, start)| *start)
        .chain([text.len()])
        .collect();
    starts
        .into_iter()
        .zip(ends)
        .map(move |((line, start), end)| Document {
            line,
            text: &text[start..end],
        })
        .filter(|document| !document.is_blank())
}

impl Document<'_> {
    fn is_blank(&self) -> bool {
        self.text.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
        })
    }

    fn parse(&self) -> Vec<Parsed> {
        let head: Head = match from_str(self.text) {
            Ok(head) => head,
            Err(error) => return vec![self.fault(None, &error)],
        };
        if head.kind == "List" && head.api_version == "v1" {
            return self.list();
        }
        let Some(kind) = head.known() else {
            return vec![Parsed::Ignored {
                kind: format!("{}/{}", head.api_version, head.kind),
            }];
        };
        let key = head.key(kind);
        let object = match typed(kind, &Yaml(self.text)) {
            Ok(object) => object,
            Err(error) => return vec![self.fault(key, &error)],
        };
        let problems = check::check(&object);
        if problems.is_empty() {
            return vec![Parsed::Object {
                object,
                line: self.line,
            }];
        }
        problems
            .into_iter()
            .map(|problem| self.refused(key.clone(), problem))
            .collect()
    }

    /// `kind: List`, as `kubectl get -o yaml` prints it. Its items keep the line of the list.
    fn list(&self) -> Vec<Parsed> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            items: Vec<serde_json::Value>,
        }
        let list: List = match from_str(self.text) {
            Ok(list) => list,
            Err(error) => return vec![self.fault(None, &error)],
        };
        let mut parsed = Vec::new();
        for (index, item) in list.items.iter().enumerate() {
            let lines = lines_of(self.text);
            let line =
                lines.and_then(|tree| tree.line(&[Step::Key("items".into()), Step::Index(index)]));
            let line = line.map_or(self.line, |line| line + self.line - 1);
            let text = item.to_string();
            let item = Document { line, text: &text };
            parsed.extend(item.parse());
        }
        parsed
    }

    fn fault(&self, object: Option<ObjectKey>, error: &serde_saphyr::Error) -> Parsed {
        let aim = self.aim(object.as_ref());
        let offset = error.location().map_or(0, |at| {
            usize::try_from(at.line()).unwrap_or(1).saturating_sub(1)
        });
        Parsed::Fault {
            line: self.line + offset,
            object,
            reason: reason(error),
            aim,
        }
    }

    fn refused(&self, object: Option<ObjectKey>, problem: Problem) -> Parsed {
        let line = lines_of(self.text).and_then(|tree| tree.line(&problem.path.0));
        let line = line.map_or(self.line, |line| line + self.line - 1);
        let aim = self.aim(object.as_ref());
        Parsed::Fault {
            line,
            object,
            reason: problem.to_string(),
            aim,
        }
    }

    fn aim(&self, object: Option<&ObjectKey>) -> Option<Aim> {
        aim(object?.kind, &from_str(self.text).unwrap_or_default())
    }
}

/// As much of a document as names its object.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: HeadMetadata,
}

#[derive(Deserialize, Default)]
struct HeadMetadata {
    name: Option<String>,
    namespace: Option<String>,
}

impl Head {
    fn known(&self) -> Option<Kind> {
        let kind: Kind = self.kind.parse().ok()?;
        kind.api_versions()
            .contains(&self.api_version.as_str())
            .then_some(kind)
    }

    fn key(&self, kind: Kind) -> Option<ObjectKey> {
        let namespace = self.metadata.namespace.as_deref().unwrap_or("default");
        self.metadata
            .name
            .as_deref()
            .map(|name| ObjectKey::new(kind, namespace, name))
    }
}

/// Where a typed object is read from.
pub(super) trait Source {
    type Error;
    fn read<T: DeserializeOwned>(&self) -> Result<T, Self::Error>;
}

struct Yaml<'a>(&'a str);

impl Source for Yaml<'_> {
    type Error = serde_saphyr::Error;

    fn read<T: DeserializeOwned>(&self) -> Result<T, Self::Error> {
        from_str(self.0)
    }
}

/// An object of `kind`. One without a namespace, of a kind that has one, is put into `default`,
/// as an API server's clients do.
pub(super) fn typed<S: Source>(kind: Kind, source: &S) -> Result<Object, S::Error> {
    let mut object = Object::of(kind, source)?;
    if kind.namespaced() && object.metadata().namespace.is_none() {
        object.metadata_mut().namespace = Some("default".into());
    }
    Ok(object)
}

/// One document.
pub(super) fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    // The location is reported beside the message, so the message needs no excerpt of the file.
    // Only `true` and `false` are booleans: a country `NO` is a text.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options)
}

/// The message alone: the line goes into its own field, the column is a detail of the parser.
fn reason(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let message = text.lines().next().unwrap_or_default();
    let message = message.split(" at line ").next().unwrap_or(message);
    message.trim_start_matches("error: ").to_owned()
}

/// Where every value of a document stands. Built only when something must be reported.
struct Tree {
    line: usize,
    node: Node,
}

enum Node {
    Scalar,
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

/// The lines of `text`, from 1 at its beginning; none if it is not YAML at all.
fn lines_of(text: &str) -> Option<Tree> {
    from_str::<Spanned<Node>>(text).ok().map(Tree::from)
}

impl Tree {
    /// The line of the value at `path`, or of as much of the path as there is.
    fn line(&self, path: &[Step]) -> Option<usize> {
        let Some((step, rest)) = path.split_first() else {
            return Some(self.line);
        };
        let child = match (&self.node, step) {
            (Node::Map(entries), Step::Key(key)) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, tree)| tree),
            (Node::List(items), Step::Index(index)) => items.get(*index),
            _ => None,
        };
        child.map_or(Some(self.line), |child| child.line(rest))
    }
}

impl From<Spanned<Node>> for Tree {
    fn from(node: Spanned<Node>) -> Self {
        Tree {
            line: usize::try_from(node.referenced.line()).unwrap_or(1),
            node: node.value,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Nodes;

        impl<'de> Visitor<'de> for Nodes {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_str<E: de::Error>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element::<Spanned<Node>>()? {
                    list.push(item.into());
                }
                Ok(Node::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
                let mut map = Vec::new();
                while let Some(key) = entries.next_key::<String>()? {
                    map.push((key, entries.next_value::<Spanned<Node>>()?.into()));
                }
                Ok(Node::Map(map))
            }
        }

        deserializer.deserialize_any(Nodes)
    }
}

#[cfg(test)]
mod tests;
