-- Let prod answer every request again.
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
if not task.traffic then return cjson.encode({revision = task.revision}) end
local revision = new_revision()
remember(state_of(task))
local previous = text_of(task.traffic)
task.traffic = nil
save_task(task, revision)
record(revision, 'clear_traffic', {
  tenant = arg.tenant, task = arg.task, previous_traffic = previous})
return done({revision = revision, previous_traffic = previous})
