-- Create a task, or replace the options of an existing one.
local task = load_task()
local refused = stale(task)
if refused then return refused end
local is_same = task and task.description == arg.description
  and task.is_sensitive == arg.is_sensitive
if is_same then return cjson.encode({revision = task.revision, was_created = false}) end
local function options_of(holder)
  return cjson.encode({description = holder.description, is_sensitive = holder.is_sensitive})
end
local tenant
if not task then
  tenant, refused = counted_tenant()
  refused = refused or over_quota(tenant, {tasks = 1})
  if refused then return refused end
end
local revision = new_revision()
if tenant then count(tenant, {tasks = 1}) end
local previous = task and options_of(task) or nil
local was_created = not task
task = task or new_task()
task.description = arg.description
task.is_sensitive = arg.is_sensitive
save_task(task, revision)
record(revision, 'put_task', {tenant = arg.tenant, task = arg.task,
  options = options_of(task), previous_options = previous})
return done({revision = revision, was_created = was_created})
