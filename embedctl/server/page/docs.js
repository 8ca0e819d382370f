// The description in Swagger UI. A key that is entered there stays in the page's memory.
'use strict';
SwaggerUIBundle({
  spec: JSON.parse(document.getElementById('description').textContent),
  dom_id: '#viewer',
  validatorUrl: null, // or it would ask a server elsewhere
  queryConfigEnabled: false, // an address says nothing about what is shown
  persistAuthorization: false,
  withCredentials: false,
  tryItOutEnabled: true,
  docExpansion: 'list',
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  syntaxHighlight: { activated: true },
});
