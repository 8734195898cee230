//! What prost generates, in the modules that its paths expect.

#![allow(dead_code)] // the tour uses a part of it

pub mod dst {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/dst.v1.rs"));
    }
}

pub mod google {
    pub mod rpc {
        include!(concat!(env!("OUT_DIR"), "/google.rpc.rs"));
    }
}

pub mod grpc {
    pub mod health {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
        }
    }
}
