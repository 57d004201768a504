// How much of the processors a control group leaves to this process.
#if defined(__linux__)

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

#include "cgroups.h"

namespace multihead::platform {
namespace {

// Where the process is in the hierarchies: /proc/self/cgroup has a line for each, as
// "0::/a/b" for version 2 and "4:cpu,cpuacct:/a/b" for one of version 1.
struct Places {
  std::string v2, v1;

  explicit Places(const std::string& root) {
    std::ifstream file(root + "/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
      const size_t first = line.find(':'), second = line.find(':', first + 1);
      if (first == std::string::npos || second == std::string::npos) continue;
      std::string names = line.substr(first, second - first + 1);
      names.front() = names.back() = ',';
      const std::string path = line.substr(second + 1);
      if (names == ",,") v2 = path;
      if (names.find(",cpu,") != std::string::npos) v1 = path;
    }
  }
};

// A quota and its period; 0 where there is no limit, or none to be read.
double quotient(const std::string& quota, const std::string& period) {
  const double a = std::strtod(quota.c_str(), nullptr), b = std::strtod(period.c_str(), nullptr);
  return a > 0 && b > 0 && a < 1e18 && b < 1e18 ? a / b : 0;  // "max" and "-1" are no limit
}

double quota_v2(const std::string& group) {
  std::string quota, period;
  std::ifstream(group + "/cpu.max") >> quota >> period;
  return quotient(quota, period);
}

double quota_v1(const std::string& group) {
  std::string quota, period;
  std::ifstream(group + "/cpu.cfs_quota_us") >> quota;
  std::ifstream(group + "/cpu.cfs_period_us") >> period;
  return quotient(quota, period);
}

// The smallest quota from a place up to the top of its hierarchy. In a container the place may be
// one that is seen from outside alone; the top is its own group then.
double smallest(const std::string& top, std::string place, double (*read)(const std::string&)) {
  double least = 0;
  for (;;) {
    while (!place.empty() && place.back() == '/') place.pop_back();
    const double quota = read(top + place);
    if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
    if (place.empty()) return least;
    place.erase(place.find_last_of('/') == std::string::npos ? 0 : place.find_last_of('/'));
  }
}

}  // namespace

double cgroup_quota(const std::string& root) {
  const Places places(root);
  const std::string top = root + "/sys/fs/cgroup";
  const double v2 = smallest(top, places.v2, quota_v2);
  return v2 > 0 ? v2 : smallest(top + "/cpu", places.v1, quota_v1);
}

}  // namespace multihead::platform

#endif
