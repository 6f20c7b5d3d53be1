-- Let a task answer with every item of its catalog again.
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local size = redis.call('HSTRLEN', AVAILABILITY, arg.field)
if size == 0 then return cjson.encode({revision = task.revision}) end
local tenant, uncounted = counted_tenant()
if uncounted then return uncounted end
local revision = new_revision()
count(tenant, {bundle_bytes = -size})
redis.call('HDEL', AVAILABILITY, arg.field)
save_task(task, revision)
record(revision, 'clear_availability', {tenant = arg.tenant, task = arg.task})
return done({revision = revision, was_changed = true})
