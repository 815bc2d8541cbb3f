// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an image is called.

use std::fmt;
use std::str::FromStr;

/// The forms that [`ImageName`] is written in.
pub(crate) const FORMS: &str =
    "POOL/IMAGE, POOL/NAMESPACE/IMAGE, each with @SNAPSHOT behind it or not";

/// The most bytes of each part; Ceph's own limits are lower or about as high.
const MOST: usize = 4096;

/// The name of an image or of a snapshot: `POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]`, as the program `rbd` takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageName {
    pool: String,
    namespace: String,
    image: String,
    snapshot: Option<String>,
}

impl ImageName {
    /// The pool.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// The namespace in the pool; empty is the default one.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The image.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The snapshot, if it is one.
    pub fn snapshot(&self) -> Option<&str> {
        self.snapshot.as_deref()
    }

    /// Where images with such names are: the name up to the image's own.
    pub(crate) fn place(&self) -> String {
        match self.namespace.as_str() {
            "" => self.pool.clone(),
            namespace => format!("{}/{namespace}", self.pool),
        }
    }
}

/// A text is no name of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {FORMS}")]
pub struct BadName;

impl FromStr for ImageName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let mut parts = text.split('/');
        let (pool, second) = (parts.next().ok_or(BadName)?, parts.next().ok_or(BadName)?);
        let third = parts.next();
        if parts.next().is_some() {
            return Err(BadName);
        }
        let (namespace, last) = match third {
            Some(last) => (Some(second), last),
            None => (None, second),
        };
        let (image, snapshot) = match last.split_once('@') {
            Some((image, snapshot)) => (image, Some(snapshot)),
            None => (last, None),
        };
        // Cannot be said to the library.
        let wrong = |part: &str| part.is_empty() || part.len() > MOST || part.contains('\0');
        // Nor can this be in a name that it made, but for a pool's.
        let wrong_inside = |part: &str| wrong(part) || part.contains('@');
        let inside = [namespace, Some(image), snapshot];
        if wrong(pool) || inside.into_iter().flatten().any(wrong_inside) {
            return Err(BadName);
        }
        Ok(Self {
            pool: pool.to_owned(),
            namespace: namespace.unwrap_or_default().to_owned(),
            image: image.to_owned(),
            snapshot: snapshot.map(str::to_owned),
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.place(), self.image)?;
        match &self.snapshot {
            Some(snapshot) => write!(f, "@{snapshot}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_shown() {
        for text in ["p/i", "p/n/i", "p/i@s", "p/n/i@s", "p.x/i-1"] {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), text);
        }
        let name: ImageName = "p/n/i@s".parse().unwrap();
        assert_eq!((name.pool(), name.namespace()), ("p", "n"));
        assert_eq!((name.image(), name.snapshot()), ("i", Some("s")));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "p",
            "/",
            "p/",
            "/i",
            "p//i",
            "p/n/",
            "a/b/c/d",
            "p/i@",
            "p/@s",
            "p/i@s@t",
            "p/n@s/i",
            "p/i\0",
            "p\0/i",
            "p@q/p@q/i",
            "p@q/i@p@q",
        ] {
            assert_eq!(text.parse::<ImageName>(), Err(BadName), "{text:?}");
        }
        assert_eq!(
            format!("p/{}", "i".repeat(5000)).parse::<ImageName>(),
            Err(BadName)
        );
    }
}
