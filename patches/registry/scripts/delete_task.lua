-- Remove a task with its versions, aliases, traffic and remembered states.
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local tenant, uncounted = counted_tenant()
if uncounted then return uncounted end
local revision = new_revision()
local less = {tasks = -1}
local versions = redis.call('HGETALL', VERSIONS)
for at = 1, #versions, 2 do
  for name, amount in pairs(added_by(cjson.decode(versions[at + 1]).summary, -1)) do
    less[name] = (less[name] or 0) + amount
  end
  drop_ref(versions[at])
end
less.bundle_bytes = (less.bundle_bytes or 0) - redis.call('HSTRLEN', AVAILABILITY, arg.field)
count(tenant, less)
redis.call('HDEL', AVAILABILITY, arg.field)
redis.call('DEL', VERSIONS, STATES)
redis.call('HDEL', TASKS, arg.field)
record(revision, 'delete_task', {tenant = arg.tenant, task = arg.task,
  previous_aliases = cjson.encode(task.aliases), previous_traffic = text_of(task.traffic)})
return done({revision = revision})
