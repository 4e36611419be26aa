use narrows_shard::Encoding;
use narrows_staging::device::DeviceSlice;

pub(crate) struct Matrix {
    pub(crate) encoding: Encoding,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: DeviceSlice,
}

pub(crate) struct RowsMut {
    pub(crate) data: DeviceSlice,
    pub(crate) stride: usize,
    pub(crate) first: usize,
}
