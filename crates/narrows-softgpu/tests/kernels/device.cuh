// Stands in for kernels/device.cuh: the test kernels run under the software driver alone.
#pragma once
