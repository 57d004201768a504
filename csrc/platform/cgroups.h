// How much of the processors a control group leaves to this process, on Linux.
#pragma once

#include <string>

namespace multihead::platform {

// The smallest quota of the process's group and of the groups around it, in processors; 0: no
// limit. Files are read below `root`, which is empty but for tests.
double cgroup_quota(const std::string& root);

}  // namespace multihead::platform
