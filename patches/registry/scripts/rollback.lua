-- Restore the newest remembered state in which the alias names a version and that differs from the
-- present one.
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local back, state = 0, nil
repeat
  back = back + 1
  local text = redis.call('LINDEX', STATES, -back)
  if not text then return fail('nothing_to_roll_back') end
  state = cjson.decode(text)
until state.aliases[arg.alias] and not is_same_state(state, task)
local revision = new_revision()
redis.call('LTRIM', STATES, 0, -(back + 1))
local was, was_traffic = task.aliases, task.traffic
task.aliases, task.traffic = state.aliases, state.traffic
if task.traffic then task.traffic.revision = revision end
save_task(task, revision)
local previous = was[arg.alias] and was[arg.alias].digest or nil
local current = task.aliases[arg.alias]
local before, after = previous and outputs_of(previous), outputs_of(current.digest)
local aliases = cjson.encode(task.aliases)
record(revision, 'rollback', {
  tenant = arg.tenant, task = arg.task, alias = arg.alias, previous = previous,
  current = current.digest, version = current.version,
  aliases = aliases, previous_aliases = cjson.encode(was),
  traffic = text_of(task.traffic), previous_traffic = text_of(was_traffic)})
return done({revision = revision, version = current.version, digest = current.digest,
             previous = previous, aliases = task.aliases, traffic = text_of(task.traffic),
             is_same_outputs = before ~= nil and before == after})
