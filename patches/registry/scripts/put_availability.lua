-- Replace the list of a task's items that are to be had, or not. Its bytes count as those of bundles.
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local before = redis.call('HGET', AVAILABILITY, arg.field)
if before == arg.text then return cjson.encode({revision = task.revision}) end
local tenant
tenant, refused = counted_tenant()
local more = {bundle_bytes = #arg.text - (before and #before or 0)}
if not refused and more.bundle_bytes > 0 then refused = over_quota(tenant, more) end
if refused then return refused end
local revision = new_revision()
count(tenant, more)
redis.call('HSET', AVAILABILITY, arg.field, arg.text)
save_task(task, revision)
record(revision, 'put_availability', {tenant = arg.tenant, task = arg.task, note = arg.note})
return done({revision = revision, was_changed = true})
