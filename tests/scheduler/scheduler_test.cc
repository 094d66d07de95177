#include "scheduler/core/scheduler.h"
