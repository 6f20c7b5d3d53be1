-- Remove an alias; prod stays while the task has traffic.
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local was = task.aliases[arg.alias]
if not was then return fail('alias_not_found') end
if arg.alias == PROD and task.traffic then return fail('alias_in_use') end
local revision = new_revision()
remember(state_of(task))
task.aliases[arg.alias] = nil
save_task(task, revision)
record(revision, 'delete_alias', {
  tenant = arg.tenant, task = arg.task, alias = arg.alias, previous = was.digest,
  version = was.version})
return done({revision = revision})
