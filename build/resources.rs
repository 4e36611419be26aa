//! What nvcc says of the kernels that it made, with `--resource-usage`.

/// A line for each kernel that keeps values in memory of its threads: spilled registers, or a stack frame, which
/// holds arrays that are indexed by what only a running thread knows.
pub(crate) fn in_memory(resources: &str) -> Vec<String> {
    let mut kernel = "a kernel";
    let mut found = Vec::new();
    for line in resources.lines() {
        // `ptxas info    : Compiling entry function 'NAME' for 'sm_90'`, and on a line of its own
        // `    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads`
        if let Some((_, name)) = line.split_once("Compiling entry function ") {
            kernel = name;
        }
        let bytes = |what| {
            let (before, _) = line.split_once(what)?;
            before.rsplit([' ', ',', '\t']).next()?.parse::<u64>().ok()
        };
        let counts = [" bytes stack frame", " bytes spill stores", " bytes spill loads"].map(bytes);
        if counts.iter().flatten().any(|count| *count > 0) {
            found.push(format!("{kernel} keeps values in memory: {}", line.trim()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::in_memory;

    /// As nvcc 13.0 writes it, of one kernel.
    fn said(frame: u32, stores: u32, loads: u32) -> String {
        format!(
            "ptxas info    : Compiling entry function 'gemm_huge_nf4' for 'sm_90'\n\
             ptxas info    : Function properties for gemm_huge_nf4\n    \
             {frame} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads\n\
             ptxas info    : Used 247 registers, used 1 barriers, 64 bytes cumulative stack size\n"
        )
    }

    #[test]
    fn values_in_memory_are_found() {
        assert_eq!(in_memory(&said(0, 0, 0)), [""; 0]);
        for (frame, stores, loads) in [(64, 0, 0), (8, 4, 8), (0, 4, 0), (0, 0, 12), (1024, 0, 0)] {
            let found = in_memory(&format!("{}{}", said(0, 0, 0), said(frame, stores, loads)));
            let want = format!(
                "'gemm_huge_nf4' for 'sm_90' keeps values in memory: {frame} bytes stack frame, {stores} bytes spill \
                 stores, {loads} bytes spill loads"
            );
            assert_eq!(found, [want]);
        }
    }

    #[test]
    fn each_kernel_is_named() {
        let said =
            said(64, 0, 0) + &said(8, 8, 8).replace("gemm_huge_nf4", "matvec4_nf4").replace("90", "75");
        let found = in_memory(&said);
        assert!(
            found[0].starts_with("'gemm_huge_nf4' for 'sm_90'")
                && found[1].starts_with("'matvec4_nf4' for 'sm_75'")
        );
        assert_eq!(found.len(), 2);
    }
}
