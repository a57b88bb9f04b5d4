//! Names and fields as they are written down in recordings: in full, and parsed again when read.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};
use smol_str::SmolStr;

use crate::doc::{DocPath, Fields, Value};
use crate::id::{AccountId, InstanceId, ThreadId};

macro_rules! recorded {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::parse(SmolStr::deserialize(from)?).map_err(D::Error::custom)
            }
        }
    )*};
}

recorded!(AccountId, DocPath, InstanceId, ThreadId);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self)
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::<SmolStr, Value>::deserialize(from)?.into_iter().collect())
    }
}
