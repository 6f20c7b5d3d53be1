"""Tasks, their versions and aliases: registering, naming, forgetting, one script each."""

from peterrec.patches.registry.scripts.prelude import PRELUDE

ADD_VERSION = (
    PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if redis.call('HEXISTS', BLOBS, arg.digest) == 0 then return fail('blob_missing') end
local known = load_version(arg.digest)
local is_moved = arg.alias and not (task and names(task, arg.alias, arg.digest))
if known and not is_moved then
  return cjson.encode({revision = task.revision, version = known.version, was_created = false})
end
local revision = new_revision()
if task and is_moved then remember(state_of(task)) end
task = task or new_task()
local version = known and known.version or task.next_version
if not known then
  task.next_version = version + 1
  redis.call('HSET', VERSIONS, arg.digest, cjson.encode({
    version = version, created_ms = now_ms, actor = arg.actor, summary = arg.summary}))
  redis.call('HINCRBY', REFS, arg.digest, 1)
  redis.call('ZREM', UNUSED, arg.digest)
end
local previous = is_moved and point(task, arg.alias, arg.digest, version) or nil
save_task(task, revision)
record(revision, known and 'set_alias' or 'add_version', {
  tenant = arg.tenant, task = arg.task, alias = arg.alias, previous = previous,
  current = arg.digest, version = version})
return done({revision = revision, version = version, was_created = not known})
"""
)

SET_ALIAS = (
    PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local known = load_version(arg.digest)
if not known then return fail('version_not_found') end
if names(task, arg.alias, arg.digest) then
  return cjson.encode({revision = task.revision, version = known.version, digest = arg.digest,
                       previous = arg.digest})
end
local revision = new_revision()
remember(state_of(task))
local previous = point(task, arg.alias, arg.digest, known.version)
save_task(task, revision)
record(revision, 'set_alias', {
  tenant = arg.tenant, task = arg.task, alias = arg.alias, previous = previous,
  current = arg.digest, version = known.version})
return done({revision = revision, version = known.version, digest = arg.digest,
             previous = previous})
"""
)

DELETE_ALIAS = (
    PRELUDE
    + """
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
"""
)

ROLLBACK = (
    PRELUDE
    + """
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
local aliases = cjson.encode(task.aliases)
record(revision, 'rollback', {
  tenant = arg.tenant, task = arg.task, alias = arg.alias, previous = previous,
  current = current.digest, version = current.version,
  aliases = aliases, previous_aliases = cjson.encode(was),
  traffic = text_of(task.traffic), previous_traffic = text_of(was_traffic)})
return done({revision = revision, version = current.version, digest = current.digest,
             previous = previous, aliases = task.aliases, traffic = text_of(task.traffic)})
"""
)

DELETE_VERSION = (
    PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local known = load_version(arg.digest)
if not known then return fail('version_not_found') end
local users = {}
for alias, target in pairs(task.aliases) do
  if target.digest == arg.digest then users[alias] = target end
end
if next(users) or is_in_traffic(task, arg.digest) then
  return cjson.encode({error = 'version_in_use', aliases = users,
                       is_in_traffic = is_in_traffic(task, arg.digest)})
end
local revision = new_revision()
revise_states(function(state)
  if is_in_traffic(state, arg.digest) then return false end
  for _, target in pairs(state.aliases) do
    if target.digest == arg.digest then return false end
  end
  return true
end)
redis.call('HDEL', VERSIONS, arg.digest)
drop_ref(arg.digest)
save_task(task, revision)
record(revision, 'delete_version', {
  tenant = arg.tenant, task = arg.task, previous = arg.digest, version = known.version})
return done({revision = revision})
"""
)

PUT_TASK = (
    PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
local is_same = task and task.description == arg.description
  and task.is_sensitive == arg.is_sensitive
if is_same then return cjson.encode({revision = task.revision, was_created = false}) end
local function options_of(holder)
  return cjson.encode({description = holder.description, is_sensitive = holder.is_sensitive})
end
local revision = new_revision()
local previous = task and options_of(task) or nil
local was_created = not task
task = task or new_task()
task.description = arg.description
task.is_sensitive = arg.is_sensitive
save_task(task, revision)
record(revision, 'put_task', {tenant = arg.tenant, task = arg.task,
  options = options_of(task), previous_options = previous})
return done({revision = revision, was_created = was_created})
"""
)

DELETE_TASK = (
    PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local revision = new_revision()
for _, digest in ipairs(redis.call('HKEYS', VERSIONS)) do drop_ref(digest) end
redis.call('DEL', VERSIONS, STATES)
redis.call('HDEL', TASKS, arg.field)
record(revision, 'delete_task', {tenant = arg.tenant, task = arg.task,
  previous_aliases = cjson.encode(task.aliases), previous_traffic = text_of(task.traffic)})
return done({revision = revision})
"""
)
