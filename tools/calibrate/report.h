// What calibration tells people: the times measured, what follows from them, and how the prediction
// fits sizes that the fit did not see. Prints. One thread.
#pragma once

#include "calibrate/device_fit.h"
#include "calibrate/measure.h"
#include "plan/tuning_file.h"

namespace zbccl::tools {

plan::HostEntry report_host(const Measured& measured);
plan::DeviceEntry report_device(const DeviceMeasured& measured);

}  // namespace zbccl::tools
