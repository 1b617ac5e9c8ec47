// barrier: ranks meet and nothing moves.
#include "collectives/collective.h"

namespace zbccl::collectives {

Status barrier(Context& context, const Collective& call) {
  return context.team.enter(signature_of(context, call), {}, {}, call.timeout);
}

}  // namespace zbccl::collectives
