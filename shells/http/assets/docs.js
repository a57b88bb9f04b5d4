"use strict";
const el = (tag, text, ...children) => {
  const element = document.createElement(tag);
  if (text) element.textContent = text.replaceAll("`", "");
  element.append(...children);
  return element;
};
(async () => {
  const place = document.getElementById("paths");
  const answer = await fetch("/openapi.json");
  if (answer.status === 401) {
    location.replace("/console/login");
    return;
  }
  const api = await answer.json();
  const sections = [];
  for (const [path, item] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(item)) {
      const section = el("section");
      section.className = "card";
      section.append(el("h2", `${method.toUpperCase()} ${path}`));
      section.append(el("p", operation.summary || operation.description || ""));
      const rows = el("dl");
      for (const parameter of operation.parameters || []) {
        rows.append(el("dt", `${parameter.name} (${parameter.in})`), el("dd", parameter.description || ""));
      }
      if (operation.requestBody) {
        const schema = operation.requestBody.content["application/json"].schema;
        const name = (schema.$ref || "").split("/").pop();
        const known = (api.components.schemas || {})[name];
        for (const [field, about] of Object.entries((known && known.properties) || {})) {
          const needed = (known.required || []).includes(field) ? "" : ", optional";
          rows.append(el("dt", `${field} (body${needed})`), el("dd", about.description || ""));
        }
      }
      for (const [status, response] of Object.entries(operation.responses)) {
        rows.append(el("dt", status), el("dd", response.description));
      }
      section.append(rows);
      const schemes = (operation.security || []).flatMap((scheme) => Object.keys(scheme));
      section.append(el("p", schemes.length ? `Bearer token: ${schemes.join(" or ")}` : "Open"));
      section.lastChild.className = "quiet";
      sections.push(section);
    }
  }
  place.replaceChildren(...sections);
})();
