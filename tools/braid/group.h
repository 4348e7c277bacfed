// Processes that a launcher (mpirun, srun) has started together. MPI is there only if it was when braid was built; a
// braid that was started alone never touches it.
#pragma once

#include "pipeline/exchange.h"

namespace braid {

// Null when there is no other process. Throws Error(kUsage) when there are, and no way to talk to them: braid was built
// without MPI, srun started them without, or MPI does not know what did. Called once.
Group* JoinGroup();

// Before an error is printed: ranks that fail for one reason leave the telling to the first of them, whose end is
// theirs.
void LetEarlierRanksSpeak();

// At the very end. What is not 0 ends all of them.
void LeaveGroup(int status);

}  // namespace braid
