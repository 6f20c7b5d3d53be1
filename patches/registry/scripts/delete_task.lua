-- Remove a task with its versions, aliases, traffic and remembered states.
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
